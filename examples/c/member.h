/* Finds one member in a JSON object. It is no parser: the proxy has validated the text. */
#include <string.h>

/* The length of the JSON value that starts at `json`. */
static size_t value_length(const char *json)
{
    size_t at;
    int depth = 0, quoted = 0;

    for (at = 0; json[at] != '\0'; at++) {
        char c = json[at];

        if (quoted && c == '\\' && json[at + 1] != '\0')
            at++;
        else if (c == '"')
            quoted = !quoted;
        else if (quoted)
            continue;
        else if (c == '{' || c == '[')
            depth++;
        else if (depth > 0)
            depth -= c == '}' || c == ']';
        else if (strchr(",:}] \t\r\n", c) != NULL)
            break;
    }
    return at;
}

/* Where the value of `key` starts in the object `json`; NULL if it has none. A key that is itself
   written with escapes is not recognised. */
static const char *member(const char *json, const char *key)
{
    json += strspn(json, " \t\r\n");
    if (*json != '{')
        return NULL;
    json++;
    for (;;) {
        const char *name;

        json += strspn(json, " \t\r\n,");
        if (*json != '"')
            return NULL;
        name = json + 1;
        json += value_length(json);
        json += strspn(json, " \t\r\n:");
        if (strncmp(name, key, strlen(key)) == 0 && name[strlen(key)] == '"')
            return json;
        json += value_length(json);
    }
}

/* The string member `key` of the object `json`, as it stands between its quotes, escapes and all,
   `*length` bytes long; `otherwise` if there is no such string. */
static const char *string_member(const char *json, const char *key, const char *otherwise, int *length)
{
    const char *value = json == NULL ? NULL : member(json, key);

    if (value == NULL || *value != '"') {
        *length = (int)strlen(otherwise);
        return otherwise;
    }
    *length = (int)value_length(value) - 2;
    return value + 1;
}
