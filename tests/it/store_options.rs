//! What options make of the requests that a store is sent.
//!
//! Encryption keys, identities of the cloud and their servers cannot be had here: a server of our own says
//! yes to everything, and what it was asked is looked at. That shows that the options arrive where Amazon
//! documents them; not that Amazon takes them. A shared access signature is proven by Azurite, which checks
//! it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::Method;
use axum::response::{IntoResponse, Response};
use expect_test::{Expect, expect};
use frazil::lake::Stores;
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, PutMultipartOptions, PutPayload};

use crate::fixture::{self, Pipeline};

/// An S3 server, and one that gives credentials for tokens, that says yes to everything.
struct Yes {
    port: u16,
    asked: Arc<Mutex<String>>,
}

/// Headers that say how a request is encrypted or who sends it.
const TELLING: &str = "x-amz-server-side-encryption";

impl Yes {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(String::new()));
        let router = Router::new().fallback(answer).with_state(asked.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { port, asked }
    }

    /// Writes a file at once and in parts, and reads it; what was asked.
    async fn asks(options: &[(&str, &str)], expected: Expect) {
        let yes = Self::start().await;
        let endpoint = format!("http://127.0.0.1:{}", yes.port);
        let plain = [
            ("s3.endpoint", endpoint.as_str()),
            ("s3.region", "eu-north-1"),
            ("s3.access-key-id", "key"),
            ("s3.secret-access-key", "secret"),
        ];
        let options = plain.iter().chain(options).map(|(name, value)| ((*name).into(), (*value).into()));
        let (store, path) = Stores::new(options.collect()).resolve("s3://bucket/file").unwrap();
        store.put(&path, PutPayload::from_static(b"x")).await.unwrap();
        let mut parts = store.put_multipart_opts(&path, PutMultipartOptions::default()).await.unwrap();
        parts.put_part(PutPayload::from_static(b"x")).await.unwrap();
        parts.complete().await.unwrap();
        store.get(&path).await.unwrap().bytes().await.unwrap();
        expected.assert_eq(&yes.asked.lock().unwrap());
    }
}

async fn answer(State(asked): State<Arc<Mutex<String>>>, request: Request) -> Response {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let (what, body) = match (request.method(), query.as_str()) {
        (&Method::POST, query) if query.starts_with("uploads") => {
            ("begin", "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>")
        }
        (&Method::POST, _) => {
            ("end", "<CompleteMultipartUploadResult><ETag>\"e\"</ETag></CompleteMultipartUploadResult>")
        }
        (&Method::PUT, query) if query.contains("partNumber") => ("part", ""),
        (&Method::PUT, _) => ("put", ""),
        _ => ("get", "x"),
    };
    let mut line = what.to_owned();
    for (name, value) in request.headers() {
        if let Some(name) = name.as_str().strip_prefix(TELLING) {
            write!(line, " {}={}", name.trim_start_matches('-'), value.to_str().unwrap()).unwrap();
        }
    }
    writeln!(asked.lock().unwrap(), "{line}").unwrap();
    let headers = [("etag", "\"e\""), ("last-modified", "Sat, 21 Nov 2026 20:00:00 GMT")];
    (headers, body).into_response()
}

#[tokio::test]
async fn nothing_is_said_of_encryption_unless_asked_for() {
    let expected = expect![[r#"
        put
        begin
        part
        end
        get
    "#]];
    Yes::asks(&[], expected).await;
}

#[tokio::test]
async fn the_store_is_asked_to_encrypt_with_its_own_key() {
    let expected = expect![[r#"
        put =AES256
        begin =AES256
        part
        end
        get
    "#]];
    Yes::asks(&[("s3.sse.type", "s3")], expected).await;
}

#[tokio::test]
async fn the_store_is_asked_to_encrypt_with_a_key_of_its_vault() {
    let expected = expect![[r#"
        put =aws:kms aws-kms-key-id=vault-key
        begin =aws:kms aws-kms-key-id=vault-key
        part
        end
        get
    "#]];
    Yes::asks(&[("s3.sse.type", "kms"), ("s3.sse.key", "vault-key")], expected).await;
    let expected = expect![[r#"
        put =aws:kms:dsse aws-kms-key-id=vault-key
        begin =aws:kms:dsse aws-kms-key-id=vault-key
        part
        end
        get
    "#]];
    Yes::asks(&[("s3.sse.type", "dsse-kms"), ("s3.sse.key", "vault-key")], expected).await;
}

/// Our own key goes with every request that touches the file's bytes, reading as well.
#[tokio::test]
async fn our_own_key_goes_with_every_request() {
    let key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    let expected = expect![[r#"
        put customer-algorithm=AES256 customer-key=MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY= customer-key-md5=hRasmdxgYDKV3nvbahU1MA==
        begin customer-algorithm=AES256 customer-key=MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY= customer-key-md5=hRasmdxgYDKV3nvbahU1MA==
        part customer-algorithm=AES256 customer-key=MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY= customer-key-md5=hRasmdxgYDKV3nvbahU1MA==
        end
        get customer-algorithm=AES256 customer-key=MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY= customer-key-md5=hRasmdxgYDKV3nvbahU1MA==
    "#]];
    Yes::asks(&[("s3.sse.type", "custom"), ("s3.sse.key", key)], expected).await;
}

/// Gives credentials for tokens, over TLS: by nothing less are they asked for.
struct Giver {
    process: Child,
    port: u16,
}

const GIVE: &str = r#"
import http.server, pathlib, ssl, sys
folder, key, secret = sys.argv[1:]
class Give(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        with open(folder + "/asked", "a") as asked: asked.write(self.path + "\n")
        body = f"""<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>
            <AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey><SessionToken></SessionToken>
            <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>
            </AssumeRoleWithWebIdentityResponse>""".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.HTTPServer(("127.0.0.1", 0), Give)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(folder + "/giver.crt", folder + "/giver.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
"#;

impl Giver {
    fn start(folder: &Path, (key, secret): (String, String)) -> Option<Self> {
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "30", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
            .args([
                "-addext",
                "basicConstraints=critical,CA:FALSE",
                "-keyout",
                "giver.key",
                "-out",
                "giver.crt",
            ])
            .current_dir(folder)
            .output();
        made.ok().filter(|output| output.status.success())?;
        let python = fixture::tools("python").expect("the S3 server was started by it");
        let mut command = Command::new(python);
        command.args(["-c", GIVE]).arg(folder).args([key, secret]);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Some(Self { process, port: line.trim().parse().unwrap() })
    }
}

impl Drop for Giver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A role by a token that the platform keeps in a file, as in Kubernetes: the token is exchanged for
/// credentials, and those open the store.
#[tokio::test(flavor = "multi_thread")]
async fn a_web_identity_opens_the_store() {
    let Some(s3) = fixture::s3().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let Some(giver) = Giver::start(folder.path(), s3.login()) else { return fixture::skip("openssl") };
    let (shop, token) = (folder.path().join("shop.db"), folder.path().join("token"));
    std::fs::write(&token, "a-token-of-the-platform").unwrap();
    rusqlite::Connection::open(&shop)
        .unwrap()
        .execute_batch("create table t (id integer primary key); insert into t values (1), (2)")
        .unwrap();
    let mut options = s3.options();
    options.retain(|name, _| !name.contains("key"));
    options.insert("ssl.cabundle".to_owned(), folder.path().join("giver.crt").display().to_string());
    let target = format!("sqlite://{}/dwh.db", folder.path().display());
    let source = format!("sqlite://{}", shop.display());
    let stream = ["t: { change: full, mode: merge }"];
    let pipeline = Pipeline::with_lake(&source, &target, &s3.warehouse("identity"), &options, &stream)
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", &token.display().to_string())
        .env("AWS_ROLE_ARN", "arn:aws:iam::000000000000:role/lake")
        .env("AWS_ENDPOINT_URL_STS", &format!("https://localhost:{}", giver.port));
    pipeline.ok(&["run"]);
    let said = std::fs::read_to_string(folder.path().join("asked")).unwrap();
    for part in
        ["Action=AssumeRoleWithWebIdentity", "role%2Flake", "WebIdentityToken=a-token-of-the-platform"]
    {
        assert!(said.contains(part), "{part} in {said}");
    }
    let counted = pipeline.ok(&["query", "select count(*) from main.t", "--output", "csv"]).stdout;
    assert!(counted.ends_with("\n2\n"), "{counted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_access_signature_opens_the_store_as_far_as_it_goes() {
    let Some(azurite) = fixture::azurite().await else { return };
    let warehouse = azurite.warehouse("signed");
    let stores = |rights: &str, change: fn(String) -> String| {
        let mut options = BTreeMap::from([
            ("adls.sas-token".to_owned(), change(azurite.signature(rights))),
            ("adls.endpoint".to_owned(), azurite.endpoint()),
        ]);
        options.insert("adls.account-name".to_owned(), "frazil".to_owned());
        Stores::new(options)
    };
    let same: fn(String) -> String = |signature| signature;
    let file = format!("{warehouse}/a file");
    let (all, path) = stores("rwdlac", same).resolve(&file).unwrap();
    all.put(&path, PutPayload::from_static(b"kept")).await.unwrap();
    assert_eq!(all.get(&path).await.unwrap().bytes().await.unwrap(), "kept");
    let folder = stores("l", same).resolve(&warehouse).unwrap().1;
    let listed: Vec<_> = all.list(Some(&folder)).try_collect().await.unwrap();
    assert_eq!(listed.len(), 1);

    let (reader, path) = stores("rl", same).resolve(&file).unwrap();
    assert_eq!(reader.get(&path).await.unwrap().bytes().await.unwrap(), "kept");
    assert!(reader.put(&path, PutPayload::from_static(b"other")).await.is_err(), "a signature for reading");
    let forged = |signature: String| signature.replace("sp=rl", "sp=rwdlac");
    let (forger, path) = stores("rl", forged).resolve(&file).unwrap();
    let error = forger.put(&path, PutPayload::from_static(b"other")).await.unwrap_err();
    assert!(!error.to_string().contains("sig="), "{error}");
    assert_eq!(all.get(&path).await.unwrap().bytes().await.unwrap(), "kept");
}
