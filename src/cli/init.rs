//! `init`: a commented configuration from a live database. Passwords stay out of it.

use std::fmt::Write as _;
use std::path::Path;

use url::Url;

use super::args::{Global, InitArgs};
use super::discover;
use super::output::{self, Exit};
use crate::config::units::{show_bytes, show_rows};
use crate::connection::{Connection, UNNAMED_HOST};
use crate::error::{Error, ErrorKind, Result};
use crate::table::{TableDescription, TableId, TableKind};

/// Writes the file, unless there is one.
pub(super) async fn init(global: &Global, args: &InitArgs) -> Result<Exit> {
    let path = global.config.clone().unwrap_or_else(|| "frazil.yaml".into());
    if path.exists() && !args.force {
        return Err(Error::new(ErrorKind::Config, "the configuration is there already")
            .with("file", path.display())
            .hint("`--force` replaces it, `--config FILE` writes another one"));
    }
    let probe = Connection::parse("source", &args.url)?;
    let name = args.name.clone().unwrap_or_else(|| name_of(probe.expose()));
    let connection = Connection::parse(&name, &args.url)?;
    let tables = discover::tables(&connection, &args.tables).await?;
    if tables.is_empty() {
        return Err(Error::new(ErrorKind::Config, "there are no tables that this user may read")
            .with("connection", format!("{connection:?}"))
            .hint("check the user's rights, the database's name, and `--table`"));
    }
    let variable = password_variable(&name);
    let text = write(&name, &connection, &variable, &args.lake, &tables);
    store(&path, &text)?;
    output::say(format!("wrote {} with {} streams", path.display(), tables.len()));
    if connection.expose().password().is_some() {
        output::say(format!(
            "set {variable} in the environment or in a `.env` beside it, then: frazil check"
        ));
    } else {
        output::say("next: frazil check");
    }
    Ok(Exit::Done)
}

fn store(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|source| {
        Error::new(ErrorKind::Config, format!("cannot write the configuration: {source}"))
            .with("file", path.display())
    })
}

/// The database's name as far as it can name a connection.
fn name_of(url: &Url) -> String {
    let last = url.path().rsplit('/').next().unwrap_or_default();
    let stem = last.split('.').next().unwrap_or_default();
    let name: String =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect();
    if name.trim_matches('_').is_empty() { "source".to_owned() } else { name }
}

fn password_variable(name: &str) -> String {
    format!("{}_PASSWORD", name.to_ascii_uppercase().replace('-', "_"))
}

/// The file. Comments carry what the database said of each table.
fn write(
    name: &str,
    connection: &Connection,
    variable: &str,
    lake: &str,
    tables: &[TableDescription],
) -> String {
    let mut text = String::new();
    let url = address(connection.expose(), variable);
    // Writing to a `String` cannot fail.
    let _ = write!(
        text,
        "# What frazil moves, from where to where. `frazil schema` prints the JSON Schema for editors,\n\
         # `frazil check` says what each stream would do, `frazil run` does it.\n\
         \n\
         connections:\n  {name}: {url}\n  # dwh: postgres://loader:${{DWH_PASSWORD}}@host/warehouse\n\
         \n\
         # Iceberg tables, for every engine that reads them.\n\
         lake:\n  warehouse: {lake}\n\
         \n\
         defaults:\n  source: {name}\n  # target: dwh.raw        # connection.schema to load into; without it rows stay in the lake\n\
         \x20 # mode: merge            # merge | append | replace; by itself: merge where there is a primary key\n\
         \x20 # change: auto           # auto | timestamp | version | id | full\n\
         \x20 # lag: 10m               # read again what lies this far behind the newest change\n\
         \n\
         # `public.*: {{}}` takes all tables of a schema; a table's own entry, or the last pattern, decides.\n\
         streams:\n",
        lake = scalar(&lake.replace("${", "$${")),
    );
    for table in tables {
        let _ = writeln!(text, "  # {}", about(table));
        let _ = writeln!(text, "  {}: {{}}", scalar(&quoted(&table.id)));
    }
    text
}

/// The address with a variable in the place of the password.
fn address(url: &Url, variable: &str) -> String {
    /// Stands for the variable while the URL is put together: nothing in it needs encoding.
    const STAND_IN: &str = "0stand-in0for0the0password0";
    let written = |url: &str| url.replacen(&format!("@{UNNAMED_HOST}"), "@", 1);
    if url.password().is_none() {
        return scalar(&written(url.as_str()));
    }
    let mut without = url.clone();
    // It has a password, so it has a place for one.
    let _ = without.set_password(Some(STAND_IN));
    written(without.as_str()).replacen(STAND_IN, &format!("${{{variable}}}"), 1)
}

/// One line on a table: size, key, and what `change: auto` is likely to pick.
fn about(table: &TableDescription) -> String {
    let mut parts = Vec::new();
    if table.kind != TableKind::Table {
        parts.push(discover::kind(table.kind).to_owned());
    }
    parts.extend(table.rows.map(|rows| format!("about {}", show_rows(rows))));
    parts.extend(table.bytes.map(show_bytes));
    parts.push(match table.primary_key() {
        Some(key) => format!("key {}", key.join(", ")),
        None => "no primary key".to_owned(),
    });
    parts.push(match discover::cursors(table).first() {
        None => "no cursor: read whole each time".to_owned(),
        Some(best) => format!("cursor {best}"),
    });
    parts.join("; ").replace(['\n', '\r'], " ")
}

/// A table's name as the configuration reads it back.
fn quoted(id: &TableId) -> String {
    const SPECIAL: [char; 4] = ['*', '?', '[', '{'];
    let whole = id.to_string();
    if whole.contains(SPECIAL) {
        // A pattern that matches this one name.
        return whole
            .chars()
            .map(|c| if SPECIAL.contains(&c) { format!("[{c}]") } else { c.into() })
            .collect();
    }
    id.written()
}

/// YAML for a text: as it is where that is safe, else in quotes.
fn scalar(text: &str) -> String {
    let plain = |c: char| {
        c.is_ascii_alphanumeric()
            || matches!(c, '_' | '.' | '/' | ':' | '@' | '-' | '+' | '=' | '&' | '?' | '%')
    };
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '_' | '.' | '/'));
    let word = matches!(
        text.to_ascii_lowercase().as_str(),
        "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
    );
    if starts && text.chars().all(plain) && !text.ends_with(':') && !text.contains(": ") && !word {
        return text.to_owned();
    }
    // JSON's strings are YAML's double-quoted ones.
    serde_json::to_string(text).expect("text is JSON")
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field};
    use expect_test::expect;

    use super::*;
    use crate::table::{ColumnDescription, CursorCandidate, Fidelity, KeyDescription};

    fn table(id: TableId, key: bool) -> TableDescription {
        let column = |name: &str, cursor| ColumnDescription {
            name: name.to_owned(),
            source_type: "x".to_owned(),
            field: Field::new(name, DataType::Int64, true),
            fidelity: Fidelity::Exact,
            generated: false,
            identity: false,
            indexed: true,
            cursor,
        };
        TableDescription {
            id,
            kind: if key { TableKind::Table } else { TableKind::View },
            columns: vec![
                column("id", key.then_some(CursorCandidate::Id)),
                column("updated_at", key.then_some(CursorCandidate::Timestamp)),
            ],
            keys: key
                .then(|| KeyDescription { name: "pk".into(), columns: vec!["id".into()], primary: true })
                .into_iter()
                .collect(),
            rows: key.then_some(1_500_000),
            bytes: key.then_some(180_000_000),
        }
    }

    #[test]
    fn the_file_is_read_back_as_it_was_meant_and_holds_no_password() {
        let connection =
            Connection::parse("shop", "postgres://sync:hunt%40er2@db.example/shop?sslmode=require").unwrap();
        let tables = [
            table(TableId::new("public", "orders"), true),
            table(TableId::new("public", "a*b"), true),
            table(TableId::new("odd.schema", "it's \"odd\": $(X) #"), false),
        ];
        let text = write("shop", &connection, "SHOP_PASSWORD", "./lake", &tables);
        assert!(!text.contains("hunt"), "{text}");
        expect![[r##"
            # What frazil moves, from where to where. `frazil schema` prints the JSON Schema for editors,
            # `frazil check` says what each stream would do, `frazil run` does it.

            connections:
              shop: postgres://sync:${SHOP_PASSWORD}@db.example/shop?sslmode=require
              # dwh: postgres://loader:${DWH_PASSWORD}@host/warehouse

            # Iceberg tables, for every engine that reads them.
            lake:
              warehouse: ./lake

            defaults:
              source: shop
              # target: dwh.raw        # connection.schema to load into; without it rows stay in the lake
              # mode: merge            # merge | append | replace; by itself: merge where there is a primary key
              # change: auto           # auto | timestamp | version | id | full
              # lag: 10m               # read again what lies this far behind the newest change

            # `public.*: {}` takes all tables of a schema; a table's own entry, or the last pattern, decides.
            streams:
              # about 1,500,000 rows; 180.0 MB; key id; cursor updated_at (timestamp, indexed)
              public.orders: {}
              # about 1,500,000 rows; 180.0 MB; key id; cursor updated_at (timestamp, indexed)
              "public.a[*]b": {}
              # view; no primary key; no cursor: read whole each time
              "\"odd.schema\".\"it's \"\"odd\"\": $(X) #\"": {}
        "##]].assert_eq(&text);
        let overrides = crate::config::Overrides::default();
        let config = crate::config::Config::parse(None, &text, &overrides, &|_| Some("p@ss".into())).unwrap();
        assert_eq!(config.connection("shop").unwrap().expose().password(), Some("p%40ss"));
    }

    #[test]
    fn a_database_names_its_connection() {
        let name = |url: &str| name_of(&Url::parse(url).unwrap());
        assert_eq!(name("postgres://h/My-Shop"), "my_shop");
        assert_eq!(name("sqlite:///data/shop.db"), "shop");
        assert_eq!(name("postgres://h"), "source");
    }
}
