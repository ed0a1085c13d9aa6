//! A catalog of our own making. A real one does not fail when it is told to, in the middle of a
//! request, once: this one does. What it does when nothing is wrong is proven against a real server in
//! `tests/it/`; here it applies commits with iceberg's own builder, so that they land or do not.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use iceberg::spec::{TableMetadata, TableMetadataBuilder};
use iceberg::{TableCreation, TableRequirement, TableUpdate};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What goes wrong with one request.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// The request is not done, and this is said: a status, and a header.
    Says(u16, &'static str),
    /// It is done, and then this is said.
    DoneButSays(u16),
    /// It is done, and the connection is closed without a word.
    DoneButSilent,
    /// The connection is closed without a word, and it is not done.
    Silent,
    /// It is done, and what is said cannot be read.
    DoneButGarbled,
    /// Somebody else's commit lands first; then the request is done as it should be.
    After(Vec<TableUpdate>),
}

#[derive(Default)]
pub(super) struct State {
    pub(super) tables: BTreeMap<String, TableMetadata>,
    namespaces: Vec<String>,
    /// The first whose method and path end match goes wrong.
    faults: VecDeque<(String, Fault)>,
    /// `METHOD path?query`, and ` as TOKEN` where one was sent.
    pub(super) log: Vec<String>,
    /// How many tokens were given; only the last is good. None: anybody is let in.
    pub(super) logins: Option<u32>,
    /// What a load says of the table's files.
    pub(super) config: Value,
    pub(super) storage_credentials: Value,
    /// What `/v1/config` says.
    pub(super) overrides: Value,
    pub(super) endpoints: Value,
    /// How long a token lives, in seconds.
    pub(super) token_life: Option<u64>,
    /// Namespaces and tables on a page.
    pub(super) page: usize,
    /// A create of a table that is there answers 200, as some server does.
    pub(super) forgiving: bool,
}

pub(super) struct Fake {
    pub(super) port: u16,
    pub(super) state: Arc<Mutex<State>>,
}

impl Fake {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State { page: 100, ..State::default() }));
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        Self { port, state }
    }

    /// The next request whose method and path end so goes wrong.
    pub(super) fn fault(&self, request: &str, fault: Fault) {
        self.state.lock().unwrap().faults.push_back((request.to_owned(), fault));
    }

    /// What was asked since the last look.
    pub(super) fn log(&self) -> String {
        std::mem::take(&mut self.state.lock().unwrap().log).join("\n")
    }
}

struct Request {
    method: String,
    path: String,
    query: String,
    token: Option<String>,
    body: Vec<u8>,
}

async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    while let Some(request) = read(&mut stream).await {
        let Some((status, header, body)) = state.lock().unwrap().answer(&request) else { return };
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-length: {}\r\ncontent-type: application/json\r\n{header}\r\n",
            body.len()
        );
        if stream.write_all(&[head.as_bytes(), &body].concat()).await.is_err() {
            return;
        }
    }
}

async fn read(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let header = |wanted: &str| {
        let lines = head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines
            .into_iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value.to_owned())
    };
    let length: usize = header("content-length").map_or(0, |value| value.parse().unwrap());
    let mut body = bytes[end + 4..].to_vec();
    while body.len() < length {
        stream.read_buf(&mut body).await.ok()?;
    }
    let mut words = head.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let token = header("authorization").map(|value| value.trim_start_matches("Bearer ").to_owned());
    Some(Request { method, path: path.to_owned(), query: query.to_owned(), token, body })
}

type Answer = (u16, String, Vec<u8>);

fn says(status: u16, body: &Value) -> Answer {
    (status, String::new(), serde_json::to_vec(body).unwrap())
}

fn refuses(status: u16, kind: &str) -> Answer {
    says(status, &json!({"error": {"message": "no", "type": kind, "code": status}}))
}

impl State {
    fn answer(&mut self, request: &Request) -> Option<Answer> {
        let mark = if request.query.is_empty() { "" } else { "?" };
        let by = request.token.as_ref().map(|token| format!(" as {token}")).unwrap_or_default();
        self.log.push(format!("{} {}{mark}{}{by}", request.method, request.path, request.query));
        let line = format!("{} {}", request.method, request.path);
        let hit = self.faults.iter().position(|(wanted, _)| {
            let (method, end) = wanted.split_once(' ').unwrap();
            line.starts_with(method) && line.ends_with(end)
        });
        match hit.and_then(|at| self.faults.remove(at)).map(|(_, fault)| fault) {
            None => Some(self.answer_well(request)),
            Some(Fault::Says(status, header)) => {
                let (status, _, body) = refuses(status, "X");
                Some((status, header.to_owned(), body))
            }
            Some(Fault::DoneButSays(status)) => {
                self.answer_well(request);
                Some(refuses(status, "X"))
            }
            Some(Fault::DoneButSilent) => {
                self.answer_well(request);
                None
            }
            Some(Fault::Silent) => None,
            Some(Fault::DoneButGarbled) => {
                self.answer_well(request);
                Some((200, String::new(), b"<html>".to_vec()))
            }
            Some(Fault::After(updates)) => {
                let name = request.path.rsplit('/').next().unwrap();
                let (_, metadata) = self.tables.iter().find(|(path, _)| path.ends_with(name)).unwrap();
                let moved = apply(metadata.clone(), updates);
                self.tables.insert(request.path.trim_start_matches("/v1/").to_owned(), moved);
                Some(self.answer_well(request))
            }
        }
    }

    fn answer_well(&mut self, request: &Request) -> Answer {
        if request.path == "/v1/oauth/tokens" {
            let number = self.logins.map_or(1, |number| number + 1);
            self.logins = Some(number);
            let mut token = json!({"access_token": format!("token{number}"), "token_type": "bearer"});
            if let Some(life) = self.token_life {
                token["expires_in"] = life.into();
            }
            return says(200, &token);
        }
        if let Some(number) = self.logins
            && request.token.as_deref() != Some(&format!("token{number}"))
        {
            return refuses(401, "NotAuthorizedException");
        }
        let path = request.path.trim_start_matches("/v1/").to_owned();
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        match (request.method.as_str(), path.split('/').collect::<Vec<_>>().as_slice()) {
            ("GET", ["config"]) => says(
                200,
                &json!({"defaults": {}, "overrides": self.overrides.as_object().cloned().unwrap_or_default(),
                    "endpoints": self.endpoints}),
            ),
            ("GET", ["namespaces"]) if request.query.contains("parent=") => {
                says(200, &json!({"namespaces": []}))
            }
            ("GET", ["namespaces"]) => {
                let all: Vec<Value> = self.namespaces.iter().map(|name| json!([name])).collect();
                says(200, &self.page("namespaces", all, &request.query))
            }
            ("POST", ["namespaces"]) => {
                self.namespaces.push(body["namespace"][0].as_str().unwrap().to_owned());
                says(200, &json!({"namespace": body["namespace"], "properties": {}}))
            }
            ("GET", ["namespaces", namespace, "tables"]) => {
                let inside = format!("namespaces/{namespace}/tables/");
                let names = self.tables.keys().filter_map(|path| path.strip_prefix(&inside));
                let all = names.map(|name| json!({"namespace": [namespace], "name": name})).collect();
                says(200, &self.page("identifiers", all, &request.query))
            }
            ("POST", ["namespaces", namespace, "tables"]) => self.create(namespace, body),
            ("GET", ["namespaces", _, "tables", _]) => match self.tables.get(&path) {
                Some(metadata) => says(200, &self.loaded(metadata)),
                None => refuses(404, "NoSuchTableException"),
            },
            ("GET", ["namespaces", _, "tables", _, "credentials"]) => {
                says(200, &json!({"storage-credentials": self.storage_credentials}))
            }
            ("POST", ["namespaces", _, "tables", _]) => self.commit(&path, body),
            ("POST", ["tables", "rename"]) => self.rename(&body),
            ("DELETE", ["namespaces", _, "tables", _]) => match self.tables.remove(&path) {
                Some(_) => says(200, &Value::Null),
                None => refuses(404, "NoSuchTableException"),
            },
            _ => refuses(404, "NotFoundException"),
        }
    }

    fn page(&self, name: &str, all: Vec<Value>, query: &str) -> Value {
        let start = query.split_once("pageToken=p").map_or(0, |(_, number)| number.parse().unwrap());
        let end = (start + self.page).min(all.len());
        let next = if end < all.len() { json!(format!("p{end}")) } else { Value::Null };
        json!({name: all[start..end], "next-page-token": next})
    }

    fn create(&mut self, namespace: &str, body: Value) -> Answer {
        if !self.namespaces.iter().any(|known| known == namespace) {
            return refuses(404, "NoSuchNamespaceException");
        }
        let name = body["name"].as_str().unwrap().to_owned();
        let path = format!("namespaces/{namespace}/tables/{name}");
        if let Some(known) = self.tables.get(&path) {
            return if self.forgiving {
                says(200, &self.loaded(known))
            } else {
                refuses(409, "AlreadyExistsException")
            };
        }
        let mut properties: std::collections::HashMap<String, String> =
            serde_json::from_value(body["properties"].clone()).unwrap();
        properties.remove("format-version");
        let creation = TableCreation::builder()
            .name(name)
            .location(format!("file:///{path}"))
            .schema(serde_json::from_value(body["schema"].clone()).unwrap())
            .properties(properties)
            .build();
        let metadata = TableMetadataBuilder::from_table_creation(creation)
            .and_then(TableMetadataBuilder::build)
            .unwrap();
        let answer = says(200, &self.loaded(&metadata.metadata));
        self.tables.insert(path, metadata.metadata);
        answer
    }

    fn commit(&mut self, path: &str, body: Value) -> Answer {
        let Some(metadata) = self.tables.get(path) else { return refuses(404, "NoSuchTableException") };
        let requirements: Vec<TableRequirement> =
            serde_json::from_value(body["requirements"].clone()).unwrap();
        if requirements.iter().any(|requirement| requirement.check(Some(metadata)).is_err()) {
            return refuses(409, "CommitFailedException");
        }
        let Ok(moved) = applied(metadata.clone(), serde_json::from_value(body["updates"].clone()).unwrap())
        else {
            return refuses(400, "ValidationException");
        };
        let answer = says(200, &self.loaded(&moved));
        self.tables.insert(path.to_owned(), moved);
        answer
    }

    fn rename(&mut self, body: &Value) -> Answer {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let [from, to] =
            ["source", "destination"].map(|end| (text(&body[end]["namespace"][0]), text(&body[end]["name"])));
        if !self.namespaces.contains(&to.0) {
            return refuses(404, "NoSuchNamespaceException");
        }
        let [from, to] = [from, to].map(|(namespace, name)| format!("namespaces/{namespace}/tables/{name}"));
        if self.tables.contains_key(&to) {
            return refuses(409, "AlreadyExistsException");
        }
        match self.tables.remove(&from) {
            Some(metadata) => {
                self.tables.insert(to, metadata);
                says(200, &Value::Null)
            }
            None => refuses(404, "NoSuchTableException"),
        }
    }

    fn loaded(&self, metadata: &TableMetadata) -> Value {
        json!({
            "metadata-location": "file:///somewhere/metadata.json",
            "metadata": metadata,
            "config": self.config.as_object().cloned().unwrap_or_default(),
            "storage-credentials": self.storage_credentials.as_array().cloned().unwrap_or_default(),
        })
    }
}

fn apply(metadata: TableMetadata, updates: Vec<TableUpdate>) -> TableMetadata {
    applied(metadata, updates).unwrap()
}

fn applied(metadata: TableMetadata, updates: Vec<TableUpdate>) -> iceberg::Result<TableMetadata> {
    let mut builder = metadata.into_builder(Some("file:///somewhere/metadata.json".to_owned()));
    for update in updates {
        builder = update.apply(builder)?;
    }
    Ok(builder.build()?.metadata)
}
