// A pipe loop (protocol version 1): a line of arguments in, a line of result out, logs on stderr.
// AutoFlush is for stdout being a pipe: no answer may stay in a buffer while the caller waits for
// it. UTF-8 is set without a byte order mark. The name goes back as it came, escapes and all.
using System;
using System.IO;
using System.Text;

static class Hello
{
    static void Main()
    {
        var utf8 = new UTF8Encoding(false);
        var input = new StreamReader(Console.OpenStandardInput(), utf8);
        var output = new StreamWriter(Console.OpenStandardOutput(), utf8) { AutoFlush = true };
        var log = new StreamWriter(Console.OpenStandardError(), utf8) { AutoFlush = true };

        output.WriteLine("{\"openwhisk\":1}");
        string line;
        while ((line = input.ReadLine()) != null)
        {
            string name = StringMember(line, "name") ?? "stranger";
            log.WriteLine("name=" + name);
            output.WriteLine("{\"hello\":\"Hello, " + name + "\"}");
        }
    }

    // The string member `key` of the object `json`, as it stands between its quotes, or null. It is
    // no parser: the proxy has validated the text. A key that is itself written with escapes is not
    // recognised.
    static string StringMember(string json, string key)
    {
        int at = Skip(json, 0, " \t{");
        while (at < json.Length && json[at] == '"')
        {
            int end = ValueEnd(json, at);
            string name = json.Substring(at + 1, end - at - 2);
            at = Skip(json, end, " \t:");
            end = ValueEnd(json, at);
            if (name == key)
                return json[at] == '"' ? json.Substring(at + 1, end - at - 2) : null;
            at = Skip(json, end, " \t,");
        }
        return null;
    }

    // The first place from `at` on that holds none of `characters`.
    static int Skip(string json, int at, string characters)
    {
        while (at < json.Length && characters.IndexOf(json[at]) >= 0)
            at++;
        return at;
    }

    // Where the JSON value that starts at `at` ends.
    static int ValueEnd(string json, int at)
    {
        int depth = 0;
        bool quoted = false;
        for (; at < json.Length; at++)
        {
            char c = json[at];
            if (quoted && c == '\\')
                at++;
            else if (c == '"')
                quoted = !quoted;
            else if (quoted)
                continue;
            else if (c == '{' || c == '[')
                depth++;
            else if (depth > 0)
                depth -= c == '}' || c == ']' ? 1 : 0;
            else if (",:}] \t".IndexOf(c) >= 0)
                break;
        }
        return at;
    }
}
