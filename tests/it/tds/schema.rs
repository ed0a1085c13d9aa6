//! Tables are made and changed, and the `sys` views show it.

use super::Type;
use super::engine::{Connected, Key, Table, TableColumn, declaration};
use super::translate::{Token, find, inside, quoted, split, sqlite, table_name, text_of};
use super::wire::ServerError;

type Result<T> = std::result::Result<T, ServerError>;

/// `CREATE`, `ALTER`, `DROP`, `EXEC sp_rename`, `TRUNCATE`.
pub(super) fn change(to: &mut Connected, words: &[Token], schemas: &[String]) -> Result<()> {
    let starts = |prefix: &[&str]| {
        prefix.iter().enumerate().all(|(index, word)| words.get(index).is_some_and(|token| token.is(word)))
    };
    if starts(&["CREATE", "SCHEMA"]) {
        let name = words[2].name().unwrap().to_owned();
        to.execute(&format!("INSERT INTO schemas VALUES ('{}')", name.replace('\'', "''")), &[])?;
    } else if starts(&["CREATE", "TABLE"]) {
        let (name, length) = table_name(&words[2..]).unwrap();
        let (inner, _) = inside(words, 2 + length);
        create(to, &name, inner, schemas)?;
    } else if starts(&["CREATE"]) && words.iter().take(5).any(|word| word.is("INDEX")) {
        let on = find(words, "ON").unwrap();
        let (name, length) = table_name(&words[on + 1..]).unwrap();
        let (columns, _) = inside(words, on + 1 + length);
        if words[1].is("UNIQUE") {
            let key =
                Key { name: words[on - 1].name().unwrap().into(), columns: names(columns), primary: false };
            add_key(to, &name, key)?;
        }
    } else if starts(&["DROP", "TABLE"]) {
        let start = if words[2].is("IF") { 4 } else { 2 };
        let (name, _) = table_name(&words[start..]).unwrap();
        if to.table(&name).is_none() && start == 2 {
            return Err(ServerError::new(3701, "Cannot drop the table, because it does not exist."));
        }
        to.execute(&format!("DROP TABLE IF EXISTS {}", quoted(&name)), &[])?;
        to.forget(&name);
    } else if starts(&["TRUNCATE", "TABLE"]) {
        let (name, _) = table_name(&words[2..]).unwrap();
        to.execute(&format!("DELETE FROM {}", quoted(&name)), &[])?;
    } else if starts(&["ALTER", "TABLE"]) {
        alter(to, words, schemas)?;
    } else if starts(&["EXEC", "sp_rename"]) || starts(&["EXEC", "sys", ".", "sp_rename"]) {
        rename(to, words)?;
    } else if starts(&["EXEC"]) {
        return Ok(()); // sp_getapplock and the like: one lock for all is SQLite's way anyhow
    } else {
        return Err(ServerError::new(102, format!("a form that the responder does not know: {words:?}")));
    }
    to.describe();
    Ok(())
}

fn names(tokens: &[Token]) -> Vec<String> {
    split(tokens, ",").iter().filter_map(|part| part.first()?.name()).map(str::to_owned).collect()
}

fn create(to: &mut Connected, name: &str, inner: &[Token], schemas: &[String]) -> Result<()> {
    let mut table = Table::default();
    let mut keys = Vec::new();
    for part in split(inner, ",") {
        if let Some(at) = part.iter().position(|word| word.is("PRIMARY") || word.is("UNIQUE")) {
            let is_constraint = part[0].is("CONSTRAINT") || at == 0;
            let named = if part[0].is("CONSTRAINT") {
                part[1].name().unwrap().to_owned()
            } else {
                format!("pk_{name}")
            };
            let primary = part[at].is("PRIMARY");
            if is_constraint {
                let open = part.iter().position(|word| word.is("(")).unwrap();
                keys.push(Key { name: named, columns: names(inside(part, open).0), primary });
                continue;
            }
            keys.push(Key { name: named, columns: names(&part[..1]), primary });
        }
        table.columns.push(column(part)?);
    }
    make(to, name, &table, schemas)?;
    to.note(name, &table);
    keys.into_iter().try_for_each(|key| add_key(to, name, key))
}

fn column(part: &[Token]) -> Result<TableColumn> {
    let (_, mut at) = match part.get(2) {
        Some(open) if open.is("(") => inside(part, 2),
        _ => (part, 2),
    };
    let of = text_of(&part[1..at]);
    if Type::parse(&of).is_none() {
        return Err(ServerError::new(2715, format!("Cannot find data type {of}.")));
    }
    let has = |word: &str| part.iter().any(|token| token.is(word));
    let default = part.iter().position(|word| word.is("DEFAULT")).map(|found| {
        at = found + 1;
        sqlite(&part[at..at + 1], &[])
    });
    Ok(TableColumn {
        name: part[0].name().unwrap().to_owned(),
        of,
        not_null: has("NOT") || has("PRIMARY"),
        identity: has("IDENTITY"),
        computed: has("PERSISTED"),
        default,
    })
}

fn make(to: &Connected, name: &str, table: &Table, _: &[String]) -> Result<()> {
    let columns: Vec<_> = table
        .columns
        .iter()
        .map(|column| {
            let not_null = if column.not_null && !column.identity { " NOT NULL" } else { "" };
            let default = column.default.as_ref().map(|text| format!(" DEFAULT {text}")).unwrap_or_default();
            format!("{} {}{not_null}{default}", quoted(&column.name), declaration(&column.of))
        })
        .collect();
    let temporary = if name.starts_with('#') { "TEMP " } else { "" };
    to.execute(&format!("CREATE {temporary}TABLE {} ({})", quoted(name), columns.join(", ")), &[])?;
    Ok(())
}

fn add_key(to: &mut Connected, name: &str, key: Key) -> Result<()> {
    let mut table = to.table(name).ok_or_else(|| ServerError::new(1088, "Cannot find the object."))?;
    index(to, name, &key)
        .map_err(|error| if error.number == 2627 { ServerError::new(1505, error.message) } else { error })?;
    table.keys.push(key);
    table.keys.sort_by_key(|key| !key.primary);
    to.note(name, &table);
    Ok(())
}

fn index(to: &Connected, name: &str, key: &Key) -> Result<()> {
    let columns: Vec<_> = key.columns.iter().map(|column| quoted(column)).collect();
    let temporary = if name.starts_with('#') { "temp." } else { "" };
    let own = quoted(&format!("{} of {name}", key.name));
    to.execute(
        &format!("CREATE UNIQUE INDEX {temporary}{own} ON {} ({})", quoted(name), columns.join(", ")),
        &[],
    )?;
    Ok(())
}

fn alter(to: &mut Connected, words: &[Token], schemas: &[String]) -> Result<()> {
    let (name, length) = table_name(&words[2..]).unwrap();
    let Some(mut table) = to.table(&name) else {
        return Err(ServerError::new(4902, "Cannot find the object."));
    };
    let rest = &words[2 + length..];
    if rest[0].is("ENABLE") {
        table.tracked = true;
        track(to, &name, &table)?;
        to.note(&name, &table);
        return Ok(());
    }
    if rest[0].is("ALTER") && rest[1].is("COLUMN") {
        let new = column(&rest[2..])?;
        let old = table.columns.iter_mut().find(|column| column.name == new.name);
        let old = old.ok_or_else(|| ServerError::new(4924, "The column does not exist."))?;
        if table.keys.iter().any(|key| key.columns.contains(&new.name)) {
            return Err(ServerError::new(5074, "The primary key is dependent on the column."));
        }
        *old = new;
        return rebuild(to, &name, &table, schemas);
    }
    if rest[0].is("ADD") && (rest[1].is("CONSTRAINT") || rest[1].is("PRIMARY")) {
        let open = rest.iter().position(|word| word.is("(")).unwrap();
        let named =
            if rest[1].is("CONSTRAINT") { rest[2].name().unwrap().to_owned() } else { format!("pk_{name}") };
        return add_key(to, &name, Key { name: named, columns: names(inside(rest, open).0), primary: true });
    }
    if rest[0].is("DROP") && rest[1].is("CONSTRAINT") {
        table.keys.retain(|key| Some(key.name.as_str()) != rest[2].name());
        return rebuild(to, &name, &table, schemas);
    }
    if rest[0].is("ADD") {
        for part in split(&rest[1..], ",") {
            table.columns.push(column(part)?);
        }
        return rebuild(to, &name, &table, schemas);
    }
    Err(ServerError::new(102, format!("a form that the responder does not know: {words:?}")))
}

/// What happens to each row is written down, by its key. A version is one row here, where the server
/// counts transactions.
fn track(to: &Connected, name: &str, table: &Table) -> Result<()> {
    let log = quoted(&format!("{name} changes"));
    let key =
        &table.keys.first().ok_or_else(|| ServerError::new(4997, "The table has no primary key."))?.columns;
    let described: Vec<_> = key
        .iter()
        .map(|key| {
            let column =
                table.columns.iter().find(|column| column.name == *key).expect("a column of the key");
            format!("{} {}", quoted(key), declaration(&column.of))
        })
        .collect();
    to.execute(
        &format!(
            "CREATE TABLE {log} (version INTEGER, SYS_CHANGE_OPERATION TEXT, place TEXT, {})",
            described.join(", ")
        ),
        &[],
    )?;
    let write = |row: &str, operation: &str, condition: &str| {
        let of_row: Vec<_> = key.iter().map(|key| format!("{row}.{}", quoted(key))).collect();
        let place = of_row.join(" || '|' || ");
        format!(
            "INSERT INTO \"sys.changes\" SELECT NULL WHERE {condition};
             INSERT INTO {log} SELECT (SELECT count(*) FROM \"sys.changes\"), '{operation}', {place}, {} WHERE {condition};",
            of_row.join(", ")
        )
    };
    let moved: Vec<_> = key.iter().map(|key| format!("old.{0} IS NOT new.{0}", quoted(key))).collect();
    let left = write("old", "D", &moved.join(" OR "));
    for (event, does) in [
        ("INSERT", write("new", "I", "1")),
        ("DELETE", write("old", "D", "1")),
        // A key that moves is a delete and an insert.
        ("UPDATE", left + &write("new", "U", "1")),
    ] {
        let own = quoted(&format!("{event} of {name}"));
        to.execute(&format!("CREATE TRIGGER {own} AFTER {event} ON {} BEGIN {does} END", quoted(name)), &[])?;
    }
    Ok(())
}

/// The table as it is described now, with the rows that it has.
fn rebuild(to: &mut Connected, name: &str, table: &Table, schemas: &[String]) -> Result<()> {
    let old = to.table(name).unwrap();
    let shared: Vec<_> = table
        .columns
        .iter()
        .filter(|column| old.columns.iter().any(|old| old.name == column.name))
        .map(|column| quoted(&column.name))
        .collect();
    let (own, aside, columns) = (quoted(name), quoted(&format!("{name} old")), shared.join(", "));
    to.execute(&format!("ALTER TABLE {own} RENAME TO {aside}"), &[])?;
    make(to, name, table, schemas)?;
    to.execute(&format!("INSERT INTO {own} ({columns}) SELECT {columns} FROM {aside}"), &[])?;
    to.execute(&format!("DROP TABLE {aside}"), &[])?;
    table.keys.iter().try_for_each(|key| index(to, name, key))?;
    to.note(name, table);
    Ok(())
}

/// `EXEC sp_rename N'a.b.c', N'd', N'COLUMN'`.
fn rename(to: &mut Connected, words: &[Token]) -> Result<()> {
    let texts: Vec<&str> = words
        .iter()
        .filter_map(|word| match word {
            Token::Text(text) => Some(text.as_str()),
            _ => None,
        })
        .collect();
    let (path, new) = (super::translate::tokens(texts[0]), texts[1]);
    let (name, length) = table_name(&path).unwrap();
    let Some(mut table) = to.table(&name) else {
        return Err(ServerError::new(15225, "No item by that name could be found."));
    };
    if texts.get(2) == Some(&"COLUMN") {
        let old = path[length + 1].name().unwrap();
        to.execute(
            &format!("ALTER TABLE {} RENAME COLUMN {} TO {}", quoted(&name), quoted(old), quoted(new)),
            &[],
        )?;
        for column in table.columns.iter_mut().filter(|column| column.name == old) {
            column.name = new.to_owned();
        }
        for column in table.keys.iter_mut().flat_map(|key| &mut key.columns).filter(|column| *column == old) {
            *column = new.to_owned();
        }
        to.note(&name, &table);
        return Ok(());
    }
    let (schema, _) = name.split_once('.').unwrap();
    let new = format!("{schema}.{new}");
    if to.table(&new).is_some() {
        return Err(ServerError::new(15335, "The new name is already in use."));
    }
    to.execute(&format!("ALTER TABLE {} RENAME TO {}", quoted(&name), quoted(&new)), &[])?;
    to.forget(&name);
    to.note(&new, &table);
    Ok(())
}

/// What the `sys` views have: the columns that frazil asks for.
const VIEWS: &[(&str, &str)] = &[
    ("sys.schemas", "schema_id int, name sysname"),
    (
        "sys.objects",
        "object_id int, name sysname, schema_id int, type char(2), parent_object_id int, full_name nvarchar(300), is_ms_shipped bit",
    ),
    (
        "sys.tables",
        "object_id int, name sysname, schema_id int, type char(2), is_memory_optimized bit, temporal_type tinyint, history_table_id int, is_external bit, is_ms_shipped bit, is_tracked_by_cdc bit",
    ),
    ("sys.views", "object_id int, name sysname, schema_id int, is_ms_shipped bit"),
    (
        "sys.columns",
        "object_id int, name sysname, column_id int, system_type_id tinyint, user_type_id int, max_length smallint, precision tinyint, scale tinyint, collation_name sysname, is_nullable bit, is_identity bit, is_computed bit, default_object_id int, generated_always_type tinyint, is_hidden bit, is_sparse bit",
    ),
    (
        "sys.types",
        "name sysname, system_type_id tinyint, user_type_id int, schema_id int, is_user_defined bit, is_table_type bit, is_assembly_type bit, max_length smallint, precision tinyint, scale tinyint",
    ),
    (
        "sys.indexes",
        "object_id int, name sysname, index_id int, type tinyint, is_unique bit, is_primary_key bit, is_unique_constraint bit, has_filter bit, is_disabled bit, is_hypothetical bit",
    ),
    (
        "sys.index_columns",
        "object_id int, index_id int, index_column_id int, column_id int, key_ordinal tinyint, is_included_column bit, is_descending_key bit",
    ),
    ("sys.triggers", "object_id int, name sysname, parent_id int, is_disabled bit"),
    ("sys.sql_expression_dependencies", "referencing_id int, referenced_id int"),
    (
        "sys.dm_db_partition_stats",
        "object_id int, index_id int, row_count bigint, used_page_count bigint, reserved_page_count bigint",
    ),
    ("sys.partitions", "object_id int, index_id int, rows bigint, partition_id bigint"),
    ("sys.allocation_units", "container_id bigint, total_pages bigint"),
    ("sys.change_tracking_tables", "object_id int"),
    (
        "sys.databases",
        "name sysname, database_id int, snapshot_isolation_state tinyint, service_broker_guid uniqueidentifier",
    ),
    (
        "sys.database_recovery_status",
        "database_id int, recovery_fork_guid uniqueidentifier, database_guid uniqueidentifier",
    ),
    (
        "sys.dm_tran_active_transactions",
        "transaction_id bigint, transaction_begin_time datetime, transaction_type int",
    ),
    (
        "sys.dm_tran_database_transactions",
        "transaction_id bigint, database_id int, database_transaction_begin_time datetime",
    ),
    ("sys.dm_tran_session_transactions", "transaction_id bigint, session_id int, is_user_transaction bit"),
    ("sys.dm_exec_sessions", "session_id int, context_info varbinary(128)"),
    (
        "sys.dm_tran_locks",
        "request_owner_id bigint, resource_database_id int, resource_type nvarchar(60), resource_associated_entity_id bigint, request_mode nvarchar(60), request_status nvarchar(60), request_session_id int",
    ),
];

/// Writes the views anew.
pub(super) fn describe(of: &mut Connected) {
    for (view, columns) in VIEWS {
        let words = super::translate::tokens(columns);
        let columns: Vec<_> = split(&words, ",")
            .iter()
            .map(|part| format!("{} {}", quoted(part[0].name().unwrap()), declaration(&text_of(&part[1..]))))
            .collect();
        of.execute(&format!("DROP TABLE IF EXISTS {}", quoted(view)), &[]).unwrap();
        of.execute(&format!("CREATE TABLE {} ({})", quoted(view), columns.join(", ")), &[]).unwrap();
    }
    let mut types: Vec<String> = Vec::new();
    let tables = of.tables();
    let connection = of.raw();
    let insert = |view: &str, values: &[&dyn rusqlite::ToSql]| {
        let places = vec!["?"; values.len()].join(", ");
        connection.execute(&format!("INSERT INTO {} VALUES ({places})", quoted(view)), values).unwrap();
    };
    let mut schemas: Vec<String> = Vec::new();
    {
        let mut query = connection.prepare("SELECT name FROM schemas ORDER BY rowid").unwrap();
        schemas.extend(query.query_map([], |row| row.get(0)).unwrap().map(std::result::Result::unwrap));
    }
    for (number, schema) in schemas.iter().enumerate() {
        insert("sys.schemas", &[&(number as i64 + 1), schema]);
    }
    for (number, (full, table)) in tables.iter().enumerate() {
        let id = 1000 + number as i64;
        let (schema, name) = full.split_once('.').unwrap();
        let schema = schemas.iter().position(|known| known == schema).map_or(0, |index| index as i64 + 1);
        insert("sys.objects", &[&id, &name, &schema, &"U", &0, full, &0]);
        insert("sys.tables", &[&id, &name, &schema, &"U", &0, &0, &None::<i64>, &0, &0, &0]);
        for (index, column) in table.columns.iter().enumerate() {
            let base = column.of.split('(').next().unwrap().trim().to_ascii_lowercase();
            let known = types.iter().position(|known| *known == base).unwrap_or_else(|| {
                types.push(base.clone());
                types.len() - 1
            });
            let (length, precision, scale) = sizes(&column.of);
            let type_id = known as i64 + 1;
            let default = i64::from(column.default.is_some());
            let collation = base.contains("char").then_some("Latin1_General_CI_AS");
            insert(
                "sys.columns",
                &[
                    &id,
                    &column.name,
                    &(index as i64 + 1),
                    &type_id,
                    &type_id,
                    &length,
                    &precision,
                    &scale,
                    &collation,
                    &!column.not_null,
                    &column.identity,
                    &column.computed,
                    &default,
                    &0,
                    &false,
                    &false,
                ],
            );
        }
        for (index, key) in table.keys.iter().enumerate() {
            let number = index as i64 + 1;
            let kind = if index == 0 { 1 } else { 2 };
            insert(
                "sys.indexes",
                &[&id, &key.name, &number, &kind, &true, &key.primary, &false, &false, &false, &false],
            );
            for (place, column) in key.columns.iter().enumerate() {
                let at = table.columns.iter().position(|known| known.name == *column).unwrap() as i64 + 1;
                insert(
                    "sys.index_columns",
                    &[&id, &number, &(place as i64 + 1), &at, &(place as i64 + 1), &false, &false],
                );
            }
        }
        if table.tracked {
            insert("sys.change_tracking_tables", &[&id]);
        }
        for hazard in &table.hazards {
            match hazard.as_str() {
                "trigger" => insert("sys.triggers", &[&(id + 5000), &"watch", &id, &false]),
                "filtered" => {
                    insert(
                        "sys.indexes",
                        &[&id, &"some", &9, &2, &true, &false, &false, &true, &false, &false],
                    );
                }
                "indexed view" => {
                    insert("sys.views", &[&(id + 7000), &"seen", &1, &false]);
                    insert(
                        "sys.indexes",
                        &[&(id + 7000), &"seen", &1, &1, &true, &false, &false, &false, &false, &false],
                    );
                    insert("sys.sql_expression_dependencies", &[&(id + 7000), &id]);
                }
                other => panic!("no hazard is called {other}"),
            }
        }
    }
    insert("sys.databases", &[&"shop", &5, &1, &"00000000-0000-0000-0000-000000000005"]);
    for (index, name) in types.iter().enumerate() {
        let id = index as i64 + 1;
        insert("sys.types", &[name, &id, &id, &4, &false, &false, &false, &0, &0, &0]);
    }
}

/// `max_length` in bytes, precision and scale, as the server tells them.
fn sizes(of: &str) -> (i64, i64, i64) {
    let bytes = |length: Option<u16>, unit: i64| length.map_or(-1, |length| i64::from(length) * unit);
    match Type::parse(of).expect("checked when it was made") {
        Type::Bit | Type::TinyInt => (1, 3, 0),
        Type::SmallInt => (2, 5, 0),
        Type::Int => (4, 10, 0),
        Type::BigInt => (8, 19, 0),
        Type::Real => (4, 24, 0),
        Type::Float => (8, 53, 0),
        Type::Decimal(precision, scale) => (17, precision.into(), scale.into()),
        Type::Money => (8, 19, 4),
        Type::SmallMoney => (4, 10, 4),
        Type::NVarchar(length) => (bytes(length, 2), 0, 0),
        Type::NChar(length) => (bytes(Some(length), 2), 0, 0),
        Type::Varchar(length) | Type::Varbinary(length) => (bytes(length, 1), 0, 0),
        Type::Char(length) | Type::Binary(length) => (bytes(Some(length), 1), 0, 0),
        Type::Guid => (16, 0, 0),
        Type::Date => (3, 10, 0),
        Type::Time(scale) => (5, 16, scale.into()),
        Type::DateTime => (8, 23, 3),
        Type::SmallDateTime => (4, 16, 0),
        Type::DateTime2(scale) => (8, 27, scale.into()),
        Type::DateTimeOffset(scale) => (10, 34, scale.into()),
        Type::Xml => (-1, 0, 0),
    }
}
