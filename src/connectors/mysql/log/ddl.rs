//! What a statement in the log means for a table.
//!
//! With rows in the log, its statements are those that change tables themselves. Only few of them leave
//! every row of a table what it was; all others that name the table count as unknown.

/// What follows from a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The table's rows are what they were.
    Nothing,
    /// They may not be, and the log does not have it.
    Unknown(String),
}

/// A piece of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// A word or a name.
    Word(String),
    /// A name in quotes; what stands in `"` may be a text too.
    Quoted(String),
    Text,
    Sign(char),
}

/// Statements that change rows: where one is in the log, the rows are not.
const CHANGES: &[&str] =
    &["INSERT", "UPDATE", "DELETE", "REPLACE", "LOAD", "CALL", "WITH", "SELECT", "DO", "VALUES"];
/// Statements that change no row, whatever they name.
const HARMLESS: &[&str] = &[
    "BEGIN",
    "START",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT",
    "RELEASE",
    "SET",
    "GRANT",
    "REVOKE",
    "ANALYZE",
    "OPTIMIZE",
    "FLUSH",
    "XA",
    "USE",
    "KILL",
];
/// What can be made, altered and dropped beside tables.
const OTHER_OBJECTS: &[&str] = &[
    "VIEW",
    "TRIGGER",
    "PROCEDURE",
    "FUNCTION",
    "EVENT",
    "USER",
    "ROLE",
    "INDEX",
    "SEQUENCE",
    "SERVER",
    "PACKAGE",
    "TABLESPACE",
    "LOGFILE",
];
/// Parts of an ALTER TABLE that change no value: what comes first in them.
const HARMLESS_PARTS: &[&[&str]] = &[
    &["ADD", "INDEX"],
    &["ADD", "KEY"],
    &["ADD", "UNIQUE"],
    &["ADD", "FULLTEXT"],
    &["ADD", "SPATIAL"],
    &["ADD", "CONSTRAINT"],
    &["ADD", "FOREIGN"],
    &["ADD", "PRIMARY"],
    &["ADD", "CHECK"],
    &["ADD", "PARTITION"],
    &["DROP", "INDEX"],
    &["DROP", "KEY"],
    &["DROP", "PRIMARY"],
    &["DROP", "CHECK"],
    &["ALTER"],
    &["COMMENT"],
    &["AUTO_INCREMENT"],
    &["ALGORITHM"],
    &["LOCK"],
    &["ENABLE"],
    &["DISABLE"],
    &["FORCE"],
    &["ENGINE"],
    &["ROW_FORMAT"],
    &["STATS_PERSISTENT"],
    &["STATS_AUTO_RECALC"],
];
/// Words by which a new column has values, or stands elsewhere than at the end.
const NOT_EMPTY: &[&str] =
    &["DEFAULT", "NOT", "AS", "GENERATED", "AUTO_INCREMENT", "FIRST", "AFTER", "SERIAL", "REFERENCES"];
/// Words of a foreign key that changes rows. The catalog says which there are now, and the log is from before.
const CASCADING: &[&str] = &["CASCADE", "SET"];
/// Words in an ALTER TABLE that may concern a foreign key, or the name by which one knows the table.
const OF_FOREIGN_KEYS: &[&str] = &["FOREIGN", "CONSTRAINT", "REFERENCES", "RENAME"];

/// Reads a statement that was run in a database.
pub(super) fn meaning(sql: &str, database: &str, schema: &str, table: &str) -> Meaning {
    let tokens = statement(sql);
    let Some(verb) = tokens.first().and_then(Token::word) else { return Meaning::Nothing };
    let unknown = |what: &str| Meaning::Unknown(what.to_owned());
    if CHANGES.contains(&verb.as_str()) {
        return unknown("a statement that changes rows is in the log, and the rows are not");
    }
    if HARMLESS.contains(&verb.as_str()) {
        return Meaning::Nothing;
    }
    let words: Vec<String> = tokens.iter().filter_map(Token::word).collect();
    let is = |word: &str| words.iter().any(|there| there == word);
    if verb == "DROP" && words.get(1).is_some_and(|word| word == "DATABASE" || word == "SCHEMA") {
        let named = tokens.iter().any(|token| token.names(schema));
        return if named { unknown("its database was dropped") } else { Meaning::Nothing };
    }
    if !mentions(&tokens, database, schema, table) {
        return Meaning::Nothing;
    }
    match verb.as_str() {
        "CREATE" | "ALTER" | "DROP" if object(&words).is_none_or(|object| object != "TABLE") => {
            Meaning::Nothing
        }
        "TRUNCATE" => unknown("it was truncated"),
        "CREATE" if !subject(&tokens, database, schema, table) => Meaning::Nothing,
        "CREATE" | "DROP" | "RENAME" => unknown("it was made anew, dropped or renamed"),
        "ALTER" if subject(&tokens, database, schema, table) => altered(&tokens),
        "ALTER" if is("REFERENCES") => Meaning::Nothing,
        _ => unknown("it was altered"),
    }
}

/// Whether a statement may change which foreign keys lead from a table, or to it.
pub(super) fn rewires(sql: &str, database: &str, schema: &str, table: &str) -> bool {
    let tokens = statement(sql);
    let words: Vec<String> = tokens.iter().filter_map(Token::word).collect();
    let Some(verb) = tokens.first().and_then(Token::word) else { return false };
    if !mentions(&tokens, database, schema, table) {
        return false;
    }
    let about_tables = object(&words).is_some_and(|object| object == "TABLE");
    match verb.as_str() {
        "CREATE" => about_tables && subject(&tokens, database, schema, table),
        "DROP" => about_tables,
        "RENAME" => true,
        "ALTER" => about_tables && words.iter().any(|word| OF_FOREIGN_KEYS.contains(&word.as_str())),
        _ => false,
    }
}

/// The pieces of a statement. `SET STATEMENT max_statement_time = 10 FOR ALTER …` is that other statement.
fn statement(sql: &str) -> Vec<Token> {
    let mut tokens = tokens(sql);
    if tokens.iter().map_while(Token::word).take(2).eq(["SET", "STATEMENT"]) {
        let inner =
            tokens.iter().position(|token| token.word().as_deref() == Some("FOR")).map_or(0, |at| at + 1);
        tokens.drain(..inner);
    }
    tokens
}

/// What kind of thing a CREATE, ALTER or DROP is about.
fn object(words: &[String]) -> Option<&str> {
    let known = |word: &&String| *word == "TABLE" || OTHER_OBJECTS.contains(&word.as_str());
    words.iter().skip(1).find(known).map(String::as_str)
}

/// Whether every part of an ALTER TABLE leaves the rows what they were.
fn altered(tokens: &[Token]) -> Meaning {
    // The parts begin behind the name, which may have a database before it.
    let named = tokens.iter().position(|token| token.word().as_deref() == Some("TABLE")).unwrap_or(0) + 1;
    if tokens.iter().take(named).any(|token| token.word().as_deref() == Some("IGNORE")) {
        return Meaning::Unknown(
            "rows that a new index does not allow were deleted (`ALTER IGNORE`)".to_owned(),
        );
    }
    let mut from = named;
    while tokens.get(from).and_then(Token::word).is_some_and(|word| word == "IF" || word == "EXISTS") {
        from += 1;
    }
    from += if tokens.get(from + 1) == Some(&Token::Sign('.')) { 3 } else { 1 };
    let (mut depth, mut part) = (0, Vec::new());
    let mut parts = Vec::new();
    for token in tokens.get(from..).unwrap_or_default() {
        match token {
            Token::Sign('(') => depth += 1,
            Token::Sign(')') => depth -= 1,
            Token::Sign(',') if depth == 0 => {
                parts.push(std::mem::take(&mut part));
                continue;
            }
            _ => {}
        }
        part.push(token.clone());
    }
    parts.push(part);
    let harmless = |part: &Vec<Token>| {
        let words: Vec<String> = part.iter().map_while(Token::word).take(2).collect();
        let known = HARMLESS_PARTS
            .iter()
            .any(|known| words.iter().map(String::as_str).take(known.len()).eq(known.iter().copied()));
        let cascades = part.iter().filter_map(Token::word).any(|word| CASCADING.contains(&word.as_str()));
        known && !(words.first().is_some_and(|word| word == "ADD") && cascades) || is_empty_column(part)
    };
    match parts.iter().all(harmless) {
        true => Meaning::Nothing,
        false => Meaning::Unknown("its columns or partitions were altered".to_owned()),
    }
}

/// `ADD [COLUMN] name type`, at the end of the table and without values.
fn is_empty_column(part: &[Token]) -> bool {
    let word = |at: usize| part.get(at).and_then(Token::word);
    if word(0).as_deref() != Some("ADD")
        || part.contains(&Token::Sign(',')) && part.get(1) == Some(&Token::Sign('('))
    {
        return false;
    }
    let name = if word(1).as_deref() == Some("COLUMN") { 2 } else { 1 };
    let rest = part.get(name + 1..).unwrap_or_default();
    !matches!(part.get(name), None | Some(Token::Sign(_)))
        && !rest.iter().filter_map(Token::word).any(|word| NOT_EMPTY.contains(&word.as_str()))
}

/// Whether a table is named anywhere.
fn mentions(tokens: &[Token], database: &str, schema: &str, table: &str) -> bool {
    (0..tokens.len()).any(|at| names(tokens, at, database, schema, table))
}

/// Whether it is the one that an ALTER or a CREATE is about.
fn subject(tokens: &[Token], database: &str, schema: &str, table: &str) -> bool {
    let first = tokens.iter().position(|token| token.word().as_deref() == Some("TABLE")).unwrap_or(0) + 1;
    let words = ["IF", "NOT", "EXISTS"];
    let skipped = tokens
        .iter()
        .skip(first)
        .take_while(|token| token.word().is_some_and(|word| words.contains(&word.as_str())));
    let at = first + skipped.count();
    let at = if tokens.get(at + 1) == Some(&Token::Sign('.')) { at + 2 } else { at };
    names(tokens, at, database, schema, table)
}

fn names(tokens: &[Token], at: usize, database: &str, schema: &str, table: &str) -> bool {
    if !tokens.get(at).is_some_and(|token| token.names(table)) {
        return false;
    }
    match (at.checked_sub(2).map(|before| &tokens[before]), at.checked_sub(1).map(|before| &tokens[before])) {
        (Some(of), Some(Token::Sign('.'))) => of.names(schema),
        _ => database.eq_ignore_ascii_case(schema),
    }
}

impl Token {
    fn word(&self) -> Option<String> {
        match self {
            Self::Word(word) => Some(word.to_ascii_uppercase()),
            _ => None,
        }
    }

    /// Names may differ by case: whether they do is the server's choice.
    fn names(&self, name: &str) -> bool {
        match self {
            Self::Word(word) | Self::Quoted(word) => word.to_lowercase() == name.to_lowercase(),
            _ => false,
        }
    }
}

/// Words, names and signs; comments are left out, but for those that servers run.
fn tokens(sql: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = sql;
    while let Some(next) = rest.chars().next() {
        let after = &rest[next.len_utf8()..];
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$' || c as u32 > 127;
        rest = match next {
            '`' | '"' => {
                let (text, after) = quoted(after, next);
                tokens.push(Token::Quoted(text));
                after
            }
            '\'' => {
                tokens.push(Token::Text);
                quoted(after, next).1
            }
            '#' => after.split_once('\n').map_or("", |(_, after)| after),
            '-' if after.starts_with("- ") || after.starts_with("-\n") || after.starts_with("-\t") => {
                after.split_once('\n').map_or("", |(_, after)| after)
            }
            // `/*!50003 … */` and `/*M!100001 … */` are run: only their marks are left out.
            '/' if after.starts_with("*!") || after.starts_with("*M!") => {
                let inner = after.trim_start_matches(['*', 'M', '!']);
                inner.trim_start_matches(|c: char| c.is_ascii_digit())
            }
            '/' if after.starts_with('*') => after.split_once("*/").map_or("", |(_, after)| after),
            '*' if after.starts_with('/') => &after[1..],
            c if c.is_whitespace() => after,
            c if is_word(c) => {
                let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                tokens.push(Token::Word(rest[..end].to_owned()));
                &rest[end..]
            }
            sign => {
                tokens.push(Token::Sign(sign));
                after
            }
        };
    }
    tokens
}

/// What stands before a closing quote, and what comes behind it. A quote in it is doubled; in texts a
/// backslash may stand before it.
fn quoted(text: &str, quote: char) -> (String, &str) {
    let mut inner = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c == '\\' && quote != '`' {
            chars.next();
        } else if c != quote {
            inner.push(c);
        } else if chars.peek().is_some_and(|(_, next)| *next == quote) {
            inner.push(c);
            chars.next();
        } else {
            return (inner, &text[at + 1..]);
        }
    }
    (inner, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn harmless(sql: &str) -> bool {
        meaning(sql, "shop", "shop", "orders") == Meaning::Nothing
    }

    #[test]
    fn what_leaves_the_rows_alone() {
        for sql in [
            "BEGIN",
            "# Dum",
            "",
            "SAVEPOINT `orders`",
            "CREATE INDEX i ON orders (a)",
            "ALTER TABLE orders ADD INDEX i (a, b), COMMENT = 'orders, old'",
            "alter table `shop`.`orders` add column c int",
            "ALTER TABLE IF EXISTS orders ADD c varchar(20) CHARACTER SET latin1 COMMENT 'not null', ALGORITHM=INSTANT",
            "ALTER TABLE orders ADD c decimal(5,2) NULL",
            "ALTER TABLE orders ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES p (id)",
            "ALTER TABLE lines ADD FOREIGN KEY (o) REFERENCES orders (id)",
            "CREATE TABLE lines (o int REFERENCES orders (id))",
            "CREATE TABLE backup LIKE orders",
            "SET @a = 'orders'",
            "CREATE OR REPLACE VIEW v AS SELECT * FROM orders",
            "CREATE DEFINER=`a`@`%` TRIGGER t BEFORE INSERT ON orders FOR EACH ROW SET NEW.a = 1",
            "DROP TABLE other.orders, shop.`Orders2` /* orders */ -- orders",
            "TRUNCATE TABLE lines",
            "DROP DATABASE other",
            "OPTIMIZE TABLE orders",
        ] {
            assert!(harmless(sql), "{sql}");
        }
    }

    #[test]
    fn what_leads_elsewhere_now() {
        let rewires = |sql: &str| rewires(sql, "shop", "shop", "parent");
        for sql in [
            "ALTER TABLE parent DROP FOREIGN KEY f",
            "alter table `shop`.`Parent` drop constraint f",
            "ALTER TABLE lines ADD FOREIGN KEY (p) REFERENCES parent (id)",
            "ALTER TABLE parent RENAME TO other",
            "RENAME TABLE other TO parent",
            "DROP TABLE a, parent",
            "CREATE TABLE parent (id int)",
        ] {
            assert!(rewires(sql), "{sql}");
        }
        for sql in [
            "ALTER TABLE parent ADD c int",
            "ALTER TABLE other.parent DROP FOREIGN KEY f",
            "DROP INDEX i ON parent",
            "CREATE TABLE lines LIKE parent",
            "TRUNCATE parent",
            "BEGIN",
            "",
        ] {
            assert!(!rewires(sql), "{sql}");
        }
    }

    #[test]
    fn what_may_not() {
        for sql in [
            "TRUNCATE orders",
            "TRUNCATE TABLE shop.orders",
            "/*!50003 TRUNCATE */ TABLE Orders",
            "DROP TABLE IF EXISTS a, `shop`.`orders` /* generated by server */",
            "RENAME TABLE orders_new TO orders",
            "SET STATEMENT max_statement_time = 10 FOR ALTER TABLE orders DROP COLUMN a",
            "CREATE OR REPLACE TABLE orders (id int)",
            "CREATE TABLE orders LIKE o",
            "ALTER TABLE orders DROP COLUMN a",
            "ALTER TABLE orders ADD INDEX i (a), MODIFY b int",
            "ALTER TABLE orders ADD c int DEFAULT 5",
            "ALTER TABLE orders ADD c int NOT NULL",
            "ALTER TABLE orders ADD c int FIRST",
            "ALTER TABLE orders ADD COLUMN c int AS (a + 1)",
            "ALTER TABLE orders ADD c int REFERENCES p (id) ON DELETE CASCADE",
            "ALTER TABLE orders DROP FOREIGN KEY f, ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES p (id)",
            "ALTER TABLE orders DROP CONSTRAINT f",
            "ALTER TABLE orders ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES p (id) ON DELETE SET NULL",
            "ALTER IGNORE TABLE orders ADD UNIQUE (a)",
            "ALTER TABLE orders ADD (c int, d int)",
            "ALTER TABLE orders ADD COLUMN IF NOT EXISTS c int",
            "ALTER TABLE orders TRUNCATE PARTITION p",
            "ALTER TABLE orders CONVERT TO CHARACTER SET utf8mb4",
            "ALTER TABLE other RENAME TO orders",
            "ALTER TABLE p EXCHANGE PARTITION a WITH TABLE orders",
            "DROP DATABASE `shop`",
            "INSERT INTO lines VALUES (1)",
            "with x as (select 1) delete from a",
        ] {
            assert!(!harmless(sql), "{sql}");
        }
        assert_eq!(meaning("TRUNCATE orders", "other", "shop", "orders"), Meaning::Nothing);
        assert_eq!(meaning("TRUNCATE other.orders", "shop", "shop", "orders"), Meaning::Nothing);
    }
}
