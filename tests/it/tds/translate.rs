//! The T-SQL that frazil sends, in SQLite's words.
//!
//! No parser of T-SQL: a list of forms. What is not among them fails in SQLite, and with it the test.

/// A word of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// A bare word or a variable: `SELECT`, `@P1`, `@@SPID`.
    Word(String),
    /// A name in brackets or quotes.
    Name(String),
    /// A text.
    Text(String),
    Number(String),
    Sign(String),
}

use Token::{Name, Number, Sign, Text, Word};

impl Token {
    pub(super) fn is(&self, word: &str) -> bool {
        match self {
            Word(own) => own.eq_ignore_ascii_case(word),
            Sign(own) => own == word,
            _ => false,
        }
    }

    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Word(name) | Name(name) => Some(name),
            _ => None,
        }
    }
}

/// The words of a batch.
pub(super) fn tokens(sql: &str) -> Vec<Token> {
    let chars: Vec<char> = sql.chars().collect();
    let mut found = Vec::new();
    let mut at = 0;
    let quoted = |mut at: usize, end: char| {
        let mut text = String::new();
        while at < chars.len() {
            if chars[at] == end {
                if chars.get(at + 1) != Some(&end) {
                    return (text, at + 1);
                }
                at += 1;
            }
            text.push(chars[at]);
            at += 1;
        }
        (text, at)
    };
    while at < chars.len() {
        let c = chars[at];
        let next = chars.get(at + 1).copied();
        if c.is_whitespace() {
            at += 1;
        } else if c == '-' && next == Some('-') {
            while at < chars.len() && chars[at] != '\n' {
                at += 1;
            }
        } else if c == '[' || c == '"' {
            let (text, end) = quoted(at + 1, if c == '[' { ']' } else { '"' });
            found.push(Name(text));
            at = end;
        } else if c == '\'' || (matches!(c, 'N' | 'n') && next == Some('\'')) {
            let (text, end) = quoted(at + if c == '\'' { 1 } else { 2 }, '\'');
            found.push(Text(text));
            at = end;
        } else if c.is_alphabetic() || matches!(c, '_' | '@' | '#') {
            let start = at;
            while at < chars.len()
                && (chars[at].is_alphanumeric() || matches!(chars[at], '_' | '@' | '#' | '$'))
            {
                at += 1;
            }
            let word: String = chars[start..at].iter().collect();
            found.push(if word.starts_with('#') { Name(word) } else { Word(word) });
        } else if c.is_ascii_digit() {
            let start = at;
            while at < chars.len() && (chars[at].is_ascii_alphanumeric() || chars[at] == '.') {
                at += 1;
            }
            found.push(Number(chars[start..at].iter().collect()));
        } else {
            let two: String = chars[at..chars.len().min(at + 2)].iter().collect();
            let sign = if ["<>", "<=", ">=", "!="].contains(&two.as_str()) { two } else { c.to_string() };
            at += sign.chars().count();
            found.push(Sign(sign));
        }
    }
    found
}

/// The parts between `separator` where no parenthesis is open.
pub(super) fn split<'a>(tokens: &'a [Token], separator: &str) -> Vec<&'a [Token]> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0);
    for (index, token) in tokens.iter().enumerate() {
        if token.is("(") {
            depth += 1;
        } else if token.is(")") {
            depth -= 1;
        } else if depth == 0 && token.is(separator) {
            parts.push(&tokens[start..index]);
            start = index + 1;
        }
    }
    parts.push(&tokens[start..]);
    parts
}

/// Where `word` stands with no parenthesis open.
pub(super) fn find(tokens: &[Token], word: &str) -> Option<usize> {
    let parts = split(tokens, word);
    (parts.len() > 1).then(|| parts[0].len())
}

/// Behind the parenthesis that opens at `open`: its inside, and the index after it.
pub(super) fn inside(tokens: &[Token], open: usize) -> (&[Token], usize) {
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        if token.is("(") {
            depth += 1;
        } else if token.is(")") {
            depth -= 1;
            if depth == 0 {
                return (&tokens[open + 1..index], index + 1);
            }
        }
    }
    (&tokens[open + 1..], tokens.len())
}

pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The text of T-SQL again, for types.
pub(super) fn text_of(tokens: &[Token]) -> String {
    let word = |token: &Token| match token {
        Word(text) | Name(text) | Text(text) | Number(text) | Sign(text) => text.clone(),
    };
    tokens.iter().map(word).collect()
}

/// A table's name at the front: `[a].[b]`, `a.b`, `[#t]`; and how many words it has.
pub(super) fn table_name(tokens: &[Token]) -> Option<(String, usize)> {
    let first = tokens.first()?.name()?;
    if tokens.get(1).is_some_and(|dot| dot.is("."))
        && let Some(second) = tokens.get(2).and_then(Token::name)
    {
        return Some((format!("{first}.{second}"), 3));
    }
    if first.starts_with('#') { Some((first.to_owned(), 1)) } else { Some((format!("dbo.{first}"), 1)) }
}

const HINTS: &[&str] =
    &["HOLDLOCK", "UPDLOCK", "TABLOCK", "TABLOCKX", "SERIALIZABLE", "ROWLOCK", "READCOMMITTEDLOCK", "XLOCK"];

/// An expression, a condition or a whole query.
pub(super) fn sqlite(tokens: &[Token], schemas: &[String]) -> String {
    let mut out: Vec<String> = Vec::new();
    let mut limit = None;
    let mut at = 0;
    let next_is = |at: usize, word: &str| tokens.get(at).is_some_and(|token| token.is(word));
    while at < tokens.len() {
        let token = &tokens[at];
        let called = next_is(at + 1, "(");
        let schema = token.name().filter(|name| schemas.iter().any(|known| known.eq_ignore_ascii_case(name)));
        if let Some(schema) = schema
            && next_is(at + 1, ".")
            && let Some(name) = tokens.get(at + 2).and_then(Token::name)
        {
            out.push(quoted(&format!("{schema}.{name}")));
            at += 3;
            continue;
        }
        if token.is("WITH") && called {
            let (hints, after) = inside(tokens, at + 1);
            if hints.iter().all(|hint| hint.is(",") || HINTS.iter().any(|known| hint.is(known))) {
                at = after;
                continue;
            }
        }
        if token.is("TOP") {
            let (count, after) = match called {
                true => inside(tokens, at + 1),
                false => (&tokens[at + 1..at + 2], at + 2),
            };
            limit = Some(sqlite(count, schemas));
            at = after;
            continue;
        }
        if called && let Word(function) = token {
            let (arguments, after) = inside(tokens, at + 1);
            if let Some(text) = call(&function.to_ascii_uppercase(), arguments, schemas) {
                out.push(text);
                at = after;
                continue;
            }
        }
        if token.is("(") {
            let (inner, after) = inside(tokens, at);
            out.push(format!("({})", sqlite(inner, schemas)));
            at = after;
            continue;
        }
        if token.is("COLLATE") {
            at += 2;
            continue;
        }
        out.push(match token {
            Word(word) if word == "@@SPID" => "51".into(),
            Word(word) if word == "@@VERSION" => "'a TDS responder for tests'".into(),
            Word(word) => word.clone(),
            Name(name) => quoted(name),
            Text(text) => format!("'{}'", text.replace('\'', "''")),
            Number(hex) if hex.starts_with("0x") => format!("x'{}'", &hex[2..]),
            Number(text) | Sign(text) => text.clone(),
        });
        at += 1;
    }
    if let Some(limit) = limit {
        out.push(format!("LIMIT {limit}"));
    }
    // A dot binds.
    out.join(" ").replace(" . ", ".")
}

/// `CHANGES t, version`: the last thing that happened to each key since.
fn changes(arguments: &[Token]) -> Option<String> {
    let parts = split(arguments, ",");
    let (name, _) = table_name(&parts[0][1..])?;
    let Number(version) = parts.get(1)?.first()? else { return None };
    Some(format!(
        "(SELECT *, max(version) FROM {} WHERE version > {version} GROUP BY place)",
        quoted(&format!("{name} changes"))
    ))
}

/// Functions that SQLite has under another name, or not at all.
fn call(function: &str, arguments: &[Token], schemas: &[String]) -> Option<String> {
    let plain = |tokens: &[Token]| sqlite(tokens, schemas);
    let cast = |of: String, to: &[Token]| {
        let to = text_of(to).to_ascii_lowercase();
        if to.contains("int") {
            format!("CAST({of} AS INTEGER)")
        } else if to.contains("char") || to == "sysname" {
            format!("CAST({of} AS TEXT)")
        } else {
            format!("({of})")
        }
    };
    let text = || match arguments {
        [Text(text)] => Some(text.replace(['[', ']'], "")),
        _ => None,
    };
    Some(match function {
        "CAST" | "TRY_CAST" => {
            let cut = find(arguments, "AS")?;
            cast(plain(&arguments[..cut]), &arguments[cut + 1..])
        }
        "CONVERT" => {
            let parts = split(arguments, ",");
            cast(plain(parts.get(1)?), parts[0])
        }
        "ISNULL" => format!("ifnull({})", plain(arguments)),
        "COUNT_BIG" => format!("count({})", plain(arguments)),
        "LEN" => format!("length({})", plain(arguments)),
        "DATALENGTH" => format!("length(CAST({} AS BLOB))", plain(arguments)),
        "SYSUTCDATETIME" | "GETUTCDATE" | "SYSDATETIME" | "GETDATE" => {
            "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '0000')".into()
        }
        "DATEPART" => "0".into(), // of the time zone: this server is in UTC
        "QUOTENAME" => format!("('[' || {} || ']')", plain(arguments)),
        "COLLATIONPROPERTY" => {
            format!("(CASE WHEN {} IS NULL THEN NULL ELSE 1252 END)", plain(split(arguments, ",")[0]))
        }
        "CHANGE_TRACKING_MIN_VALID_VERSION" => "0".into(),
        "CHANGE_TRACKING_CURRENT_VERSION" => "(SELECT count(*) FROM \"sys.changes\")".into(),
        "CHANGETABLE" => changes(arguments)?,
        "SYSDATETIMEOFFSET" => "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '0000 +0000')".into(),
        "DB_NAME" => "'shop'".into(),
        "DB_ID" => "5".into(),
        "SCHEMA_NAME" if arguments.is_empty() => "'dbo'".into(),
        "SUSER_SNAME" | "ORIGINAL_LOGIN" | "USER_NAME" => "'loader'".into(),
        "OBJECT_ID" => match text() {
            Some(name) => format!("(SELECT object_id FROM \"sys.objects\" WHERE full_name = '{name}')"),
            None => format!("(SELECT object_id FROM \"sys.objects\" WHERE full_name = {})", plain(arguments)),
        },
        "SCHEMA_ID" => format!("(SELECT schema_id FROM \"sys.schemas\" WHERE name = {})", plain(arguments)),
        "SERVERPROPERTY" => match text()?.as_str() {
            "ProductMajorVersion" => "'16'".into(),
            "ProductVersion" => "'16.0.1000.6'".into(),
            "EngineEdition" => "3".into(),
            _ => "NULL".into(),
        },
        "HAS_PERMS_BY_NAME" | "HAS_DBACCESS" | "IS_ROLEMEMBER" => "1".into(),
        "DATABASEPROPERTYEX" => match split(arguments, ",").get(1).map(|part| text_of(part)).as_deref() {
            Some("Updateability") => "'READ_WRITE'".into(),
            _ => "NULL".into(),
        },
        _ => return None,
    })
}
