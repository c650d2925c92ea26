// A pipe loop (protocol version 1): a line of arguments in, a line of result out, logs on stderr.
// The flush is for stdout being a pipe: std::cout would keep the line in its buffer while the
// caller waits for it. The name goes back as it came, escapes and all.
#include <algorithm>
#include <iostream>
#include <optional>
#include <string>
#include <string_view>

// The length of the JSON value that `json` begins with.
static size_t value_length(std::string_view json)
{
    int depth = 0;
    bool quoted = false;
    size_t at = 0;
    for (; at < json.size(); at++) {
        const char c = json[at];
        if (quoted && c == '\\')
            at++;
        else if (c == '"')
            quoted = !quoted;
        else if (quoted)
            continue;
        else if (c == '{' || c == '[')
            depth++;
        else if (depth > 0)
            depth -= c == '}' || c == ']';
        else if (std::string_view(",:}] \t\r").find(c) != std::string_view::npos)
            break;
    }
    return std::min(at, json.size());
}

// The string member `key` of the object `json`, as it stands between its quotes. It is no parser:
// the proxy has validated the text. A key that is itself written with escapes is not recognised.
static std::optional<std::string_view> string_member(std::string_view json, std::string_view key)
{
    const auto skip = [&json](std::string_view characters) {
        json.remove_prefix(std::min(json.find_first_not_of(characters), json.size()));
    };
    const auto take_value = [&json] {
        const std::string_view value = json.substr(0, value_length(json));
        json.remove_prefix(value.size());
        return value;
    };
    const auto is_string = [](std::string_view value) { return value.size() >= 2 && value[0] == '"'; };

    skip(" \t{");
    while (true) {
        skip(" \t,");
        const std::string_view name = take_value();
        if (!is_string(name))
            return std::nullopt;
        skip(" \t:");
        const std::string_view value = take_value();
        if (name.substr(1, name.size() - 2) == key) {
            if (!is_string(value))
                return std::nullopt;
            return value.substr(1, value.size() - 2);
        }
    }
}

int main()
{
    std::cout << R"({"openwhisk":1})" << '\n' << std::flush;
    for (std::string line; std::getline(std::cin, line);) {
        const std::string_view name = string_member(line, "name").value_or("stranger");
        std::cerr << "name=" << name << '\n';
        std::cout << R"({"hello":"Hello, )" << name << R"("})" << '\n' << std::flush;
    }
}
