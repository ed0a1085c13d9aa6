//! The YAML document as a tree in which every key and value knows its line and column.
//!
//! Variables are filled in after parsing, so that places stay those of the file and a value can
//! never break the syntax around it.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::vars::{self, Lookup, Missing};
use crate::error::{Error, ErrorKind, Result};

/// A value and where it stands.
#[derive(Debug, Clone, Default)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) mark: Mark,
    /// It came from a variable and may be a secret: errors do not repeat it.
    pub(super) filled: bool,
}

/// A line and a column, from 1; 0 where there is no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mark {
    pub(super) line: u64,
    pub(super) column: u64,
}

#[derive(Clone, Default)]
pub(super) enum Value {
    #[default]
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) mark: Mark,
}

impl Value {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

/// Shows kinds only: values may be secrets.
impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())
    }
}

impl Node {
    /// Reads a document. `file` is for messages.
    pub(super) fn parse(text: &str, file: &str) -> Result<Self> {
        let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
        let spanned: Option<Spanned<Raw>> =
            serde_saphyr::from_str_with_options(text, options).map_err(|error| syntax_error(&error, file))?;
        Ok(spanned.map(Self::from).unwrap_or_default())
    }

    /// Fills in variables, everywhere but in keys.
    pub(super) fn fill(&mut self, lookup: Lookup<'_>, file: &str) -> Result<()> {
        self.fill_below(lookup, file, &mut Vec::new())
    }

    fn fill_below(&mut self, lookup: Lookup<'_>, file: &str, path: &mut Vec<String>) -> Result<()> {
        match &mut self.value {
            Value::Text(text) => match vars::fill(text, lookup) {
                Ok(Some(filled)) => {
                    *text = filled;
                    self.filled = true;
                    Ok(())
                }
                Ok(None) => Ok(()),
                Err(missing) => Err(match missing {
                    Missing::Variable(name) => {
                        Error::new(ErrorKind::Config, format!("variable `{name}` is not set")).hint(format!(
                            "set it in the environment or in `.env`, or give a default: `${{{name}:-…}}`"
                        ))
                    }
                    Missing::Malformed => Error::new(ErrorKind::Config, "`${` without a name and `}`").hint(
                        "write `${NAME}` or `${NAME:-default}`, and `$${` for the characters themselves",
                    ),
                }
                .with("key", path.join("."))
                .with("file", self.mark.in_file(file))),
            },
            Value::List(items) => items.iter_mut().try_for_each(|item| item.fill_below(lookup, file, path)),
            Value::Map(entries) => entries.iter_mut().try_for_each(|(key, value)| {
                path.push(key.name.clone());
                value.fill_below(lookup, file, path)?;
                path.pop();
                Ok(())
            }),
            Value::Null | Value::Bool(_) | Value::Integer(_) | Value::Float(_) => Ok(()),
        }
    }

    /// Whether there is a value at the end of a path of keys.
    pub(super) fn has(&self, path: &[&str]) -> bool {
        let Some((first, rest)) = path.split_first() else { return true };
        let Value::Map(entries) = &self.value else { return false };
        entries.iter().any(|(key, value)| key.name == *first && value.has(rest))
    }

    /// Where the value at the end of a path of keys stands, or the nearest thing above it.
    pub(super) fn locate(&self, path: &[&str]) -> Mark {
        let (Value::Map(entries), Some((first, rest))) = (&self.value, path.split_first()) else {
            return self.mark;
        };
        match entries.iter().find(|(key, _)| key.name == *first) {
            Some((key, value)) if rest.is_empty() && value.mark == Mark::default() => key.mark,
            Some((_, value)) => value.locate(rest),
            None => self.mark,
        }
    }
}

impl Mark {
    /// `frazil.yaml:3:7`.
    pub(super) fn in_file(self, file: &str) -> String {
        if self.line == 0 { file.to_owned() } else { format!("{file}:{}:{}", self.line, self.column) }
    }
}

impl From<serde_saphyr::Location> for Mark {
    fn from(location: serde_saphyr::Location) -> Self {
        Self { line: location.line(), column: location.column() }
    }
}

impl From<Spanned<Raw>> for Node {
    fn from(spanned: Spanned<Raw>) -> Self {
        Self { value: spanned.value.0, mark: spanned.referenced.into(), filled: false }
    }
}

/// The parser's own words, without the excerpt of the file that it would add: that may hold a secret.
fn syntax_error(error: &serde_saphyr::Error, file: &str) -> Error {
    let mark = error.location().map(Mark::from).unwrap_or_default();
    let bare = error.without_snippet();
    let ours = match bare {
        serde_saphyr::Error::DuplicateMappingKey { key, .. } => {
            let name = key.as_deref().map(|key| format!(" {}", super::shown(key))).unwrap_or_default();
            Error::new(ErrorKind::Config, format!("the key{name} stands here twice"))
                .hint("keep one of the two; settings of both do not add up")
        }
        serde_saphyr::Error::MultipleDocuments { .. } => {
            Error::new(ErrorKind::Config, "the file holds more than one YAML document").hint("remove `---`")
        }
        serde_saphyr::Error::UnknownAnchor { .. } => {
            Error::new(ErrorKind::Config, "`*` and a name refer to a YAML anchor that is not there")
                .hint("a pattern that begins with `*` needs quotes: `'*_log': {}`")
        }
        serde_saphyr::Error::ExternalMessage { msg, .. } => {
            Error::new(ErrorKind::Config, format!("not valid YAML: {msg}"))
                .hint("check indentation and quotes; text with `: `, `#` or `{` needs quotes")
        }
        other => Error::new(
            ErrorKind::Config,
            format!(
                "not valid YAML: {}",
                other.render_with_options(serde_saphyr::RenderOptions::new(
                    &serde_saphyr::UserMessageFormatter
                ))
            ),
        ),
    };
    ours.with("file", mark.in_file(file))
}

/// What the parser hands over, before it knows where it stood.
struct Raw(Value);

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("YAML")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_none<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
                deserializer.deserialize_any(self)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(Value::Integer(value))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
                i64::try_from(value).map(Value::Integer).map_err(|_| E::custom("the number is too large"))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(Value::Float(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(Value::Text(value.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element::<Spanned<Raw>>()? {
                    list.push(item.into());
                }
                Ok(Value::List(list))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
                let mut map = Vec::new();
                while let Some(key) = entries.next_key::<Spanned<String>>()? {
                    let value = entries.next_value::<Spanned<Raw>>()?;
                    map.push((Key { name: key.value, mark: key.referenced.into() }, value.into()));
                }
                Ok(Value::Map(map))
            }
        }

        deserializer.deserialize_any(Any).map(Raw)
    }
}
