//! What HTTP frames, end to end: large bodies with their checksums, the ways in which a message ends, and what is refused because
//! two readers could read it differently.

use std::time::Duration;

use lab::{Pod, Program};

use super::Guarded;
use crate::mesh::{SOON, serve};

const GIBIBYTE: &str = "1073741824";
/// Back, meanwhile. Less, for the time that it takes.
const QUARTER: &str = "268435456";

/// Seconds on an idle machine; never a measurement.
const TRANSFERRED: Duration = Duration::from_secs(240);

const TO: &str = "server.shop:81";

#[test]
fn a_gibibyte_passes_whole_by_either_protocol() {
    let guarded = Guarded::start();
    serve(&guarded.servers[0], &["http", "--http2", "--listen", "[::]:8083"]);
    guarded.service("modern", 8083);
    let before = guarded.resident();
    let all: [&[&str]; 6] = [
        &["upload", "--with", TO, "--bytes", GIBIBYTE],
        &["download", "--with", TO, "--bytes", QUARTER],
        &["upload", "--with", "modern.shop:81", "--bytes", GIBIBYTE, "--http2"],
        &["download", "--with", "modern.shop:81", "--bytes", QUARTER, "--http2"],
        &["upload", "--with", TO, "--bytes", "67108864", "--sized"],
        &["download", "--with", TO, "--bytes", "67108864", "--sized"],
    ];
    let clients = all.map(|args| guarded.client.spawn(Program::new("lab-app").args(args)).expect("a client"));
    for client in clients {
        let output = client.wait(TRANSFERRED).expect("a transfer that ends");
        assert!(output.success(), "{output:?}");
    }
    let grown = guarded.resident().saturating_sub(before);
    assert!(grown < 128 << 20, "six transfers cost {grown} bytes");
}

/// Sends argv[3] to argv[1]:argv[2], half-closes, and prints what comes until the end.
const SAY: &str = "
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
s.sendall(sys.argv[3].encode('latin-1'))
s.shutdown(socket.SHUT_WR)
got = b''
try:
    while part := s.recv(65536): got += part
except ConnectionResetError:
    got += b'[reset]'
sys.stdout.write(got.decode('latin-1'))
";

/// What a client gets that sends this and nothing more.
fn say(client: &Pod, text: &str) -> String {
    let (host, port) = TO.split_once(':').expect("a port");
    let program = Program::new("python3").args(["-c", SAY, host, port, text]);
    let output = client.run_within(program, SOON).expect("a client that ends");
    assert!(output.success(), "{text:?}: {output:?}");
    output.stdout
}

#[test]
fn what_could_be_read_in_two_ways_is_refused_and_reaches_nobody() {
    let guarded = Guarded::start();
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let head = "POST /carrier HTTP/1.1\r\nHost: server.shop\r\n";
    let cases = [
        (
            "both framings",
            format!("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        ),
        ("two lengths", format!("Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello{smuggled}")),
        ("a list of lengths", format!("Content-Length: 5, 6\r\n\r\nhello{smuggled}")),
        ("a signed length", format!("Content-Length: +5\r\n\r\nhello{smuggled}")),
        ("a bare CR", format!("X-A: b\rContent-Length: 0\r\n\r\n{smuggled}")),
        ("a folded line", format!("X-A: b\r\n Content-Length: 0\r\n\r\n{smuggled}")),
        ("a space before the colon", format!("Content-Length : 0\r\n\r\n{smuggled}")),
        ("an unknown coding", format!("Transfer-Encoding: xchunked\r\n\r\n{smuggled}")),
        ("chunked twice", format!("Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n{smuggled}")),
        ("a broken chunk", format!("Transfer-Encoding: chunked\r\n\r\n5;\n\r\nhello\r\n0\r\n\r\n{smuggled}")),
    ];
    for (what, rest) in &cases {
        let answer = say(&guarded.client, &format!("{head}{rest}"));
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(matches!(status, "400" | "501"), "{what}: {answer:?}");
        assert!(!answer.contains("smuggled"), "{what}: {answer:?}");
    }
    // Who only ends its own direction is answered.
    let fine = say(&guarded.client, &format!("{head}Content-Length: 2\r\n\r\nhi"));
    assert!(fine.starts_with("HTTP/1.1 200"), "{fine:?}");
}

/// Answers by path, byte by byte as written here, one request after another on a connection.
const ODD_SERVER: &str = r#"
import socket, threading
answers = {
  '/hints': b'HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhints',
  '/204': b'HTTP/1.1 204 No Content\r\nX-Of: 204\r\n\r\n',
  '/304': b'HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\nX-Of: 304\r\n\r\n',
  '/head': b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\nX-Of: head\r\n\r\n',
  '/trailers': b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n8\r\ntrailers\r\n0\r\nX-Sum: 7\r\n\r\n',
  '/until-the-end': b'HTTP/1.1 200 OK\r\n\r\nuntil the end',
}
def serve(c):
    f = c.makefile('rb')
    while line := f.readline():
        length, expects = 0, False
        while (field := f.readline().strip().lower()):
            name, _, value = field.partition(b':')
            if name == b'content-length': length = int(value)
            if name == b'expect': expects = True
        path = line.split()[1].decode()
        if path == '/expect':
            if expects: c.sendall(b'HTTP/1.1 100 Continue\r\n\r\n')
            body = f.read(length)
            c.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n' % len(body) + body)
            continue
        f.read(length)
        c.sendall(answers[path])
        if path == '/until-the-end': break
    c.close()
s = socket.create_server(('::', 8081), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
print('listening on 8081', flush=True)
while True:
    c, _ = s.accept()
    threading.Thread(target=serve, args=(c,), daemon=True).start()
"#;

#[test]
fn every_way_to_end_a_message_is_kept_end_to_end() {
    let guarded = Guarded::start();
    let [server, _] = &guarded.servers;
    let odd = server.spawn(Program::new("python3").args(["-c", ODD_SERVER])).expect("a server");
    odd.wait_for_line("listening", SOON).expect("a server that listens");
    guarded.service("odd", 8081);
    let told = |args: &[&str]| {
        let words: Vec<&str> = ["-i", "--raw"].iter().chain(args).copied().collect();
        let output = crate::mesh::curl(&guarded.client, &words);
        assert!(output.success(), "{args:?}: {output:?}");
        output.stdout
    };
    // All on one connection: a message that were framed otherwise would spoil the next.
    let url = |path: &str| format!("http://odd.shop:81{path}");
    let paths = ["/204", "/304", "/hints", "/trailers", "/204", "/until-the-end"].map(url);
    let all = told(&paths.each_ref().map(String::as_str));
    let statuses: Vec<&str> =
        all.lines().filter_map(|line| line.split_once("HTTP/1.1 ")?.1.split(' ').next()).collect();
    assert_eq!(statuses, ["204", "304", "103", "200", "200", "204", "200"], "{all}");
    let lower = all.to_ascii_lowercase();
    for part in
        ["x-of: 304", "link: </a>", "hints", "8\r\ntrailers\r\n0\r\nx-sum: 7\r\n\r\n", "until the end"]
    {
        assert!(lower.contains(part), "no {part:?} in {all}");
    }
    let head = told(&["-I", &url("/head"), &url("/204")]);
    assert!(head.to_ascii_lowercase().contains("content-length: 99\r\n") && head.contains("204"), "{head}");
    let expecting = told(&["-H", "Expect: 100-continue", "-d", "body", &url("/expect"), &url("/expect")]);
    assert_eq!(expecting.matches("HTTP/1.1 100").count(), 2, "{expecting}");
    assert_eq!(expecting.matches("\r\n\r\nbody").count(), 2, "{expecting}");
}
