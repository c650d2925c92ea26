// Streams (protocol version 2): a frame in for each activation, frames out, several at once. Each has
// a thread of its own, so that one that sleeps delays no other. println writes a line in one piece,
// under a lock, and flushes it. The name goes back as it came, escapes and all.

import static java.nio.charset.StandardCharsets.UTF_8;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

public class HelloStream {
    private static final PrintStream OUT = new PrintStream(System.out, true, UTF_8);

    public static void main(String[] arguments) throws Exception {
        OUT.println("{\"openwhisk\":2,\"concurrency\":16}");
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, UTF_8));
        for (String line; (line = in.readLine()) != null; ) {
            String frame = line;
            new Thread(() -> greet(frame)).start();
        }
    }

    private static void greet(String frame) {
        String id = "{\"id\":" + find("^\\{\"run\":(\\d+)", frame, "0") + ",";
        String name = find("\"name\"\\s*:\\s*\"((?:[^\"\\\\]|\\\\.)*+)\"", frame, "stranger");
        OUT.println(id + "\"log\":\"name=" + name + "\"}");
        OUT.println(id + "\"chunk\":\"Hello, \"}");
        try { Thread.sleep(Long.parseLong(find("\"ms\"\\s*:\\s*(\\d+)", frame, "0"))); } catch (InterruptedException e) { return; }
        OUT.println(id + "\"chunk\":\"" + name + "\"}");
        OUT.println(id + "\"result\":{\"hello\":\"Hello, " + name + "\"}}");
    }

    private static String find(String pattern, String frame, String otherwise) {
        Matcher matcher = Pattern.compile(pattern).matcher(frame);
        return matcher.find() ? matcher.group(1) : otherwise;
    }
}
