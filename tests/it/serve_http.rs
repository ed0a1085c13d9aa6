//! The HTTP side of `frazil serve`, asked byte by byte.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use crate::serve::{PATIENCE, Served, Server};

/// An answer taken apart.
#[derive(Debug)]
struct Answer {
    status: u16,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }
}

/// The address that the server says it listens on.
fn address(served: &Served) -> String {
    let said = || {
        let log = served.log();
        let address = |line: &str| Some(line.strip_prefix("listening on ")?.split_once("://")?.1.to_owned());
        let line = log.lines().find_map(address);
        line.filter(|_| log.contains("\nlistening on") || log.starts_with("listening on"))
    };
    served.until("an address", || said().is_some());
    said().unwrap()
}

fn ask(address: &str, request: &str, headers: &[&str]) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    write!(stream, "{request} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    Answer { status: head[9..12].parse().unwrap(), body: body.to_owned() }
}

fn get(address: &str, path: &str) -> Answer {
    ask(address, &format!("GET {path}"), &[])
}

/// What is said of a stream.
fn stream(address: &str, name: &str) -> Value {
    let streams = get(address, "/streams").json();
    streams["streams"].as_array().unwrap().iter().find(|it| it["stream"] == name).unwrap().clone()
}

#[test]
fn a_program_watches_and_asks() {
    let served = Served::new(&["a: { change: full, schedule: every 1s }", "b: { change: full }"]);
    let server = served.start_with(&["--listen", "127.0.0.1:0"]);
    let at = address(&served);
    assert_eq!(get(&at, "/health").json()["status"], "ok");
    served.until("a first pass", || stream(&at, "a")["last"]["verdict"] == "done");
    let first = &get(&at, "/runs?stream=a&status=done").json()["runs"][0];
    assert_eq!((&first["verb"], &first["rows_extracted"]), (&"serve".into(), &1.into()));

    assert_eq!(ask(&at, "POST /streams/b/trigger", &[]).status, 202);
    served.until("the triggered pass", || served.rows("b") == 1);
    assert_eq!(ask(&at, "POST /streams/a/pause", &[]).status, 202);
    served.until("the pause", || stream(&at, "a")["state"] == "paused");
    // The command line sees the same, and takes it back.
    assert_eq!(served.state("a"), "paused");
    served.pipeline.ok(&["jobs", "resume", "a"]);
    served.until("the end of the pause", || stream(&at, "a")["state"] != "paused");

    served.until("the pass in the metrics", || {
        get(&at, "/metrics").body.contains("frazil_rows_upserted_total{stream=\"b\"} 1")
    });
    let metrics = get(&at, "/metrics").body;
    assert!(metrics.contains("frazil_passes_total{stream=\"b\",result=\"done\"} 1"), "{metrics}");
    assert!(metrics.contains("frazil_stream_fresh_as_of_timestamp_seconds{stream=\"a\"}"), "{metrics}");
    assert!(metrics.contains("process_resident_memory_bytes"), "{metrics}");
    assert_eq!(server.stop(), Some(0), "{}", served.log());
}

#[test]
fn a_wrong_question_gets_an_answer_that_helps() {
    let served = Served::new(&["a: { change: full, schedule: every 1h }"]);
    let server = served.start_with(&["--listen", "127.0.0.1:0"]);
    let at = address(&served);
    for (request, status, message) in [
        ("GET /", 404, "GET /health"),
        ("POST /streams/aa/pause", 404, "did you mean `a`?"),
        ("POST /streams/a/explode", 404, "there is nothing here"),
        ("GET /runs?since=whenever", 400, "not a time"),
        ("GET /runs?colour=red", 400, "/runs?stream=NAME"),
    ] {
        let answer = ask(&at, request, &[]);
        assert_eq!(answer.status, status, "{request}: {answer:?}");
        assert!(answer.body.contains(message), "{request}: {answer:?}");
        assert!(answer.json()["error"]["kind"].is_string(), "{request}: {answer:?}");
    }
    let page = ask(&at, "POST /streams/a/pause", &["origin: https://evil.example"]);
    assert_eq!(page.status, 403, "a page in somebody's browser: {page:?}");
    assert_eq!(server.stop(), Some(0), "{}", served.log());
}

#[test]
fn only_the_token_opens_it_to_other_machines() {
    let served = Served::new(&["a: { change: full, schedule: every 1h }"]);
    let refused = served.pipeline.run(&["serve", "--listen", "0.0.0.0:0"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("there is no token"), "{refused:?}");

    const TOKEN: &str = "a-token-that-nobody-guesses";
    let file = served.pipeline.folder().join("token");
    std::fs::write(&file, format!("grafana: {TOKEN}\nops: another-token-nobody-guesses\n")).unwrap();
    let server: Server =
        served.start_with(&["--listen", "0.0.0.0:0", "--token-file", file.to_str().unwrap()]);
    let at = address(&served).replace("0.0.0.0", "127.0.0.1");
    assert_eq!(get(&at, "/health").status, 200, "whoever restarts servers knows no token");
    for path in ["/streams", "/runs", "/metrics"] {
        assert_eq!(get(&at, path).status, 401, "{path}");
        let answer = ask(&at, &format!("GET {path}"), &[&format!("authorization: Bearer {TOKEN}")]);
        assert_eq!(answer.status, 200, "{path}");
        assert!(!answer.body.contains(TOKEN));
    }
    assert_eq!(ask(&at, "POST /streams/a/trigger", &["authorization: Bearer guess"]).status, 401);
    let ops = "authorization: Bearer another-token-nobody-guesses";
    assert_eq!(ask(&at, "POST /streams/a/pause", &[ops, "content-length: 99999"]).status, 413);
    assert_eq!(ask(&at, "POST /streams/a/pause", &[ops]).status, 202);
    let deeds = served.pipeline.json(&["journal"]);
    assert_eq!((&deeds[0]["who"], &deeds[0]["deed"]), (&"http:ops".into(), &"pause".into()), "{deeds:?}");
    assert!(!served.log().contains(TOKEN));
    assert_eq!(server.stop(), Some(0), "{}", served.log());
}

/// A certificate for this machine that vouches for itself, and its key.
fn certificate(folder: &std::path::Path, name: &str) -> bool {
    let request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    let made = std::process::Command::new("openssl")
        .args(request.split(' '))
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.crt")])
        .current_dir(folder)
        .output();
    made.is_ok_and(|made| made.status.success())
}

/// Asks over TLS, believing this certificate only.
async fn health_over_tls(address: &str, believed: &std::path::Path) -> Result<u16, String> {
    let believed = reqwest::Certificate::from_pem(&std::fs::read(believed).unwrap()).unwrap();
    let client = reqwest::Client::builder().tls_built_in_root_certs(false).add_root_certificate(believed);
    let asked = client.build().unwrap().get(format!("https://{address}/health")).send().await;
    asked.map(|answer| answer.status().as_u16()).map_err(|error| format!("{error:?}"))
}

#[tokio::test]
async fn it_answers_over_tls_and_takes_up_a_renewed_certificate() {
    let served = Served::new(&["a: { change: full, schedule: every 1h }"]);
    let folder = served.pipeline.folder();
    if !certificate(folder, "first") || !certificate(folder, "second") {
        return crate::fixture::skip("openssl");
    }
    let [chain, key] = ["tls.crt", "tls.key"].map(|name| folder.join(name));
    let put = |from: &str, what: &str, to: &std::path::Path| {
        std::fs::copy(folder.join(format!("{from}.{what}")), to).unwrap();
    };
    put("first", "crt", &chain);
    put("second", "key", &key);
    let args = ["--listen", "127.0.0.1:0", "--tls-cert", chain.to_str().unwrap()];
    let args = [&args[..], &["--tls-key", key.to_str().unwrap()]].concat();
    let refused = served.pipeline.run(&[&["serve"], &args[..]].concat());
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("certificate and key cannot be used"), "{refused:?}");

    put("first", "key", &key);
    let server = served.start_with(&args);
    let at = address(&served);
    let [first, second] = ["first.crt", "second.crt"].map(|name| folder.join(name));
    assert_eq!(health_over_tls(&at, &first).await, Ok(200));
    assert!(health_over_tls(&at, &second).await.is_err());
    // Whoever does not speak TLS gets no answer, and disturbs nobody.
    let mut plain = TcpStream::connect(&at).unwrap();
    plain.set_read_timeout(Some(PATIENCE)).unwrap();
    // The server may hang up in the middle of it.
    let _ = write!(plain, "GET /health HTTP/1.1\r\nhost: {at}\r\n\r\n");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");

    put("second", "crt", &chain);
    // Between the two files of a renewal.
    assert_eq!(health_over_tls(&at, &first).await, Ok(200));
    put("second", "key", &key);
    assert_eq!(health_over_tls(&at, &second).await, Ok(200));
    assert_eq!(server.stop(), Some(0), "{}", served.log());
}
