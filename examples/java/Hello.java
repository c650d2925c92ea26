// A pipe loop (protocol version 1): a line of arguments in, a line of result out, logs on stderr.
// The streams flush at each println, since stdout is a pipe: no answer may stay in a buffer while
// the caller waits for it. The name goes back as it came, escapes and all, in UTF-8.

import static java.nio.charset.StandardCharsets.UTF_8;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;

public class Hello {
    public static void main(String[] arguments) throws IOException {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, UTF_8));
        PrintStream out = new PrintStream(System.out, true, UTF_8);
        PrintStream log = new PrintStream(System.err, true, UTF_8);

        out.println("{\"openwhisk\":1}");
        String line;
        while ((line = in.readLine()) != null) {
            String name = stringMember(line, "name", "stranger");
            log.println("name=" + name);
            out.println("{\"hello\":\"Hello, " + name + "\"}");
        }
    }

    /**
     * The string member {@code key} of the object {@code json}, as it stands between its quotes. It
     * is no parser: the proxy has validated the text. A key that is itself written with escapes is
     * not recognised.
     */
    private static String stringMember(String json, String key, String otherwise) {
        int at = skip(json, 0, " \t{");
        while (at < json.length() && json.charAt(at) == '"') {
            int end = valueEnd(json, at);
            String name = json.substring(at + 1, end - 1);
            at = skip(json, end, " \t:");
            end = valueEnd(json, at);
            if (name.equals(key)) {
                return json.charAt(at) == '"' ? json.substring(at + 1, end - 1) : otherwise;
            }
            at = skip(json, end, " \t,");
        }
        return otherwise;
    }

    /** The first place from {@code at} on that holds none of {@code characters}. */
    private static int skip(String json, int at, String characters) {
        while (at < json.length() && characters.indexOf(json.charAt(at)) >= 0) {
            at++;
        }
        return at;
    }

    /** Where the JSON value that starts at {@code at} ends. */
    private static int valueEnd(String json, int at) {
        int depth = 0;
        boolean quoted = false;
        for (; at < json.length(); at++) {
            char c = json.charAt(at);
            if (quoted && c == '\\') {
                at++;
            } else if (c == '"') {
                quoted = !quoted;
            } else if (quoted) {
                continue;
            } else if (c == '{' || c == '[') {
                depth++;
            } else if (depth > 0) {
                depth -= c == '}' || c == ']' ? 1 : 0;
            } else if (",:}] \t".indexOf(c) >= 0) {
                break;
            }
        }
        return at;
    }
}
