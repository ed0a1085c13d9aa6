//! Time travel as the engines around Iceberg write it, turned into plain table names.
//!
//! | written | becomes |
//! |---|---|
//! | `t VERSION AS OF 42`, `t FOR VERSION AS OF 42` | `"t$at=42" AS t` |
//! | `t TIMESTAMP AS OF '…'`, `t FOR TIMESTAMP AS OF TIMESTAMP '…'`, `t FOR SYSTEM_TIME AS OF '…'` | `"t$at=…" AS t` |
//! | `changes('s.t', 41, 42)`, `changes('s.t', 41)` | `"s"."t$changes=41..42" AS changes` |
//!
//! This works on tokens and not on the syntax tree: the parser knows these forms in some dialects
//! only, each without the other, and function calls in FROM cannot load a table.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::{Keyword, RESERVED_FOR_TABLE_ALIAS};
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer, Word};

use crate::error::{Error, ErrorKind, Result};
use crate::table::TableId;

/// What follows a table's name when a moment of it is meant.
pub(super) const AT: &str = "$at=";
/// What follows a table's name when a range of changes is meant: two moments, divided by `..`.
pub(super) const CHANGES: &str = "$changes=";

/// The statement with every moment and every range as part of a table's name.
pub(super) fn rewrite(text: &str) -> Result<String> {
    let tokens = tokens(text)?;
    let mut out: Vec<Token> = Vec::with_capacity(tokens.len());
    let mut at = 0;
    let mut changed = false;
    while at < tokens.len() {
        let rest = &tokens[at..];
        if let Some((name, used)) = changes(rest)? {
            push_named(&mut out, name, "changes", &tokens[at + used..]);
            at += used;
            changed = true;
        } else if let Some((moment, used)) = as_of(rest)
            && let Some(parts) = take_name(&mut out)
        {
            let plain = parts.last().cloned().unwrap_or_default();
            push_named(&mut out, with_suffix(parts, &format!("{AT}{moment}")), &plain, &tokens[at + used..]);
            at += used;
            changed = true;
        } else {
            out.push(rest[0].clone());
            at += 1;
        }
    }
    Ok(if changed { out.iter().map(ToString::to_string).collect() } else { text.to_owned() })
}

/// The statements of a text, divided by semicolons; what is within quotes or comments divides nothing.
pub fn statements(text: &str) -> Result<Vec<String>> {
    let tokens = tokens(text)?;
    let statements = tokens.split(|token| *token == Token::SemiColon);
    let statements = statements
        .filter(|tokens| significant(tokens).next().is_some())
        .map(|tokens| tokens.iter().map(ToString::to_string).collect::<String>().trim().to_owned());
    Ok(statements.collect())
}

fn tokens(text: &str) -> Result<Vec<Token>> {
    Tokenizer::new(&GenericDialect {}, text)
        .with_unescape(false)
        .tokenize()
        .map_err(|error| Error::new(ErrorKind::Config, format!("query is not valid: {error}")))
}

/// The tokens that matter, with their places.
fn significant(tokens: &[Token]) -> impl Iterator<Item = (usize, &Token)> {
    tokens.iter().enumerate().filter(|(_, token)| !matches!(token, Token::Whitespace(_)))
}

fn is_word(token: &Token, text: &str) -> bool {
    matches!(token, Token::Word(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case(text))
}

/// `[FOR] VERSION|TIMESTAMP|SYSTEM_TIME|SYSTEM_VERSION AS OF [TIMESTAMP] literal` at the beginning.
fn as_of(tokens: &[Token]) -> Option<(String, usize)> {
    const KINDS: [&str; 4] = ["version", "timestamp", "system_time", "system_version"];
    let mut rest = significant(tokens).peekable();
    let (0, first) = *rest.peek()? else { return None };
    if is_word(first, "for") {
        rest.next();
    }
    let (_, kind) = rest.next()?;
    if !KINDS.iter().any(|name| is_word(kind, name))
        || !is_word(rest.next()?.1, "as")
        || !is_word(rest.next()?.1, "of")
    {
        return None;
    }
    rest.next_if(|(_, token)| is_word(token, "timestamp"));
    let (last, value) = rest.next()?;
    Some((literal(value)?, last + 1))
}

/// `changes('table', from [, to])` at the beginning.
fn changes(tokens: &[Token]) -> Result<Option<(Vec<String>, usize)>> {
    let mut rest = significant(tokens);
    let is_call = |rest: &mut dyn Iterator<Item = (usize, &Token)>| {
        let name = rest.next().filter(|(at, token)| *at == 0 && is_word(token, "changes"));
        name.is_some() && matches!(rest.next(), Some((_, Token::LParen)))
    };
    if !is_call(&mut rest) {
        return Ok(None);
    }
    let mut arguments = Vec::new();
    let end = loop {
        match rest.next() {
            Some((_, Token::Comma)) => {}
            Some((end, Token::RParen)) => break end,
            Some((_, token)) if is_word(token, "null") => arguments.push(String::new()),
            Some((_, token)) => arguments.push(literal(token).ok_or_else(wrong_changes)?),
            None => return Err(wrong_changes()),
        }
    };
    let (table, from, to) = match arguments.as_slice() {
        [table, from] => (table, from, ""),
        [table, from, to] => (table, from, to.as_str()),
        _ => return Err(wrong_changes()),
    };
    let id: TableId = table.parse()?;
    let parts = id.schema.into_iter().chain([id.name]).collect();
    Ok(Some((with_suffix(parts, &format!("{CHANGES}{from}..{to}")), end + 1)))
}

fn wrong_changes() -> Error {
    Error::new(ErrorKind::Config, "`changes` is not used right").hint(
        "write `changes('schema.table', from, to)`; from and to are snapshot ids or times, no `to` is now",
    )
}

fn literal(token: &Token) -> Option<String> {
    match token {
        Token::Number(number, _) => Some(number.clone()),
        Token::SingleQuotedString(text) => Some(text.replace("''", "'")),
        _ => None,
    }
}

/// Takes the table name off the end: `a.b.c`, each part as DataFusion means it.
fn take_name(out: &mut Vec<Token>) -> Option<Vec<String>> {
    let spaces =
        |out: &[Token]| out.iter().rev().take_while(|token| matches!(token, Token::Whitespace(_))).count();
    let mut end = out.len() - spaces(out);
    let mut parts = Vec::new();
    loop {
        let Token::Word(word) = out.get(end.checked_sub(1)?)? else { return None };
        parts.push(match word.quote_style {
            None => word.value.to_lowercase(),
            Some(_) => word.value.replace("\"\"", "\""),
        });
        end -= 1;
        match out.get(end.wrapping_sub(1)) {
            Some(Token::Period) => end -= 1,
            _ => break,
        }
    }
    out.truncate(end);
    parts.reverse();
    Some(parts)
}

fn with_suffix(mut parts: Vec<String>, suffix: &str) -> Vec<String> {
    if let Some(last) = parts.last_mut() {
        last.push_str(suffix);
    }
    parts
}

/// Puts a name, and an alias by which the statement goes on to call it, unless it has one.
fn push_named(out: &mut Vec<Token>, parts: Vec<String>, alias: &str, rest: &[Token]) {
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            out.push(Token::Period);
        }
        out.push(quoted(part));
    }
    let has_alias = matches!(significant(rest).next(), Some((_, Token::Word(word)))
        if word.keyword == Keyword::AS || !RESERVED_FOR_TABLE_ALIAS.contains(&word.keyword));
    if !has_alias {
        out.extend([Token::make_keyword(" AS "), quoted(alias)]);
    }
}

fn quoted(name: &str) -> Token {
    Token::Word(Word {
        value: name.replace('"', "\"\""),
        quote_style: Some('"'),
        keyword: Keyword::NoKeyword,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let rewritten = rewrite(text).unwrap_or_else(|error| error.to_string());
        assert_eq!(rewritten, expected);
    }

    #[test]
    fn a_moment_becomes_part_of_the_name() {
        check("select * from t version as of 42", r#"select * from "t$at=42" AS "t""#);
        check(
            "select * from S.T FOR VERSION AS OF 42 x join t on true",
            r#"select * from "s"."t$at=42" x join t on true"#,
        );
        check(
            "select * from \"S\".\"odd\"\"name\" timestamp as of '2026-08-21' where a = 'it''s'",
            r#"select * from "S"."odd""name$at=2026-08-21" AS "odd""name" where a = 'it''s'"#,
        );
        check(
            "select * from t for system_time as of timestamp '2026-08-21 12:00' as u",
            r#"select * from "t$at=2026-08-21 12:00" as u"#,
        );
        check("select version as of from t", "select version as of from t");
    }

    #[test]
    fn statements_end_at_semicolons() {
        let text = "select ';' -- one; \n from t; ; select 2 /* a;b */;\n";
        assert_eq!(statements(text).unwrap(), ["select ';' -- one; \n from t", "select 2 /* a;b */"]);
        assert!(statements("select 'open").is_err());
    }

    #[test]
    fn changes_become_a_name() {
        check(
            "select * from changes('public.orders', 41, 42) where id = 1",
            r#"select * from "public"."orders$changes=41..42" AS "changes" where id = 1"#,
        );
        check(
            "select * from changes('orders', '2026-08-21') c",
            r#"select * from "orders$changes=2026-08-21.." c"#,
        );
        check("select * from changes('orders', null, 2) c", r#"select * from "orders$changes=..2" c"#);
        check("select changes from t", "select changes from t");
        check("select * from changes('orders')", "`changes` is not used right");
    }
}
