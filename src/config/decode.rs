//! From the tree to types, by serde. Errors know their place, suggest what was meant, and never
//! repeat a value that came from a variable.

use std::fmt;

use serde::de::{
    self, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
    Visitor,
};

use super::suggest;
use super::tree::{Key, Mark, Node, Value};
use crate::error::{Error, ErrorKind, Result};

/// Reads a `T` out of a tree. `file` is for messages.
pub(super) fn decode<'de, T: de::Deserialize<'de>>(node: &'de Node, file: &str) -> Result<T> {
    T::deserialize(node).map_err(|problem| problem.into_error(file))
}

/// What serde found wrong, on its way up to where the file is known.
#[derive(Debug)]
pub(super) struct Problem {
    message: String,
    hint: Option<String>,
    mark: Option<Mark>,
    path: Vec<String>,
}

impl Problem {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, mark: None, path: Vec::new() }
    }

    fn into_error(self, file: &str) -> Error {
        let mut error = Error::new(ErrorKind::Config, self.message);
        if let Some(hint) = self.hint {
            error = error.hint(hint);
        }
        if !self.path.is_empty() {
            let path: Vec<_> = self.path.into_iter().rev().collect();
            error = error.with("key", path.join("."));
        }
        error.with("file", self.mark.unwrap_or_default().in_file(file))
    }

    fn at(mut self, mark: Mark) -> Self {
        self.mark.get_or_insert(mark);
        self
    }

    /// The innermost node that a problem passes decides: what it holds may have been repeated.
    fn in_node(mut self, node: &Node) -> Self {
        if self.mark.is_none() && node.filled {
            self.message = "the variable holds something that does not fit here".to_owned();
        }
        self.at(node.mark)
    }

    fn under(mut self, key: &Key) -> Self {
        self.path.push(super::plain(&key.name));
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

impl de::Error for Problem {
    /// A second line is the hint.
    fn custom<T: fmt::Display>(message: T) -> Self {
        let message = message.to_string();
        match message.split_once('\n') {
            Some((message, hint)) => Self { hint: Some(hint.to_owned()), ..Self::new(message) },
            None => Self::new(message),
        }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match found {
            Unexpected::Bool(_) => "true or false",
            Unexpected::Unsigned(_) | Unexpected::Signed(_) | Unexpected::Float(_) => "a number",
            Unexpected::Str(_) => "text",
            Unexpected::Unit | Unexpected::Option => "nothing",
            Unexpected::Seq => "a list",
            Unexpected::Map => "a map",
            _ => "something else",
        };
        Self::new(format!("expected {expected}, found {found}"))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self {
            hint: suggest::hint(variant, expected.iter().copied()),
            ..Self::new(format!("unknown value {}", super::shown(variant)))
        }
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self {
            hint: suggest::hint(field, expected.iter().copied()),
            ..Self::new(format!("unknown key {}", super::shown(field)))
        }
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(format!("the key `{field}` is missing"))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self {
            hint: Some("one of the two may be written as an alias".to_owned()),
            ..Self::new(format!("`{field}` is said twice"))
        }
    }
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Problem;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match &self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(value) => visitor.visit_str(value),
            Value::List(items) => visitor.visit_seq(Items(items.iter())),
            Value::Map(entries) => visitor.visit_map(Entries { entries: entries.iter(), value: None }),
        }
        .map_err(|problem| problem.in_node(self))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    /// Numbers where text is meant: a table that is called `2024`.
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match &self.value {
            Value::Integer(value) => {
                visitor.visit_string(value.to_string()).map_err(|problem: Problem| problem.in_node(self))
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.deserialize_str(visitor)
    }

    /// `${FLAG}` is text until its type is known.
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match &self.value {
            Value::Text(text) if self.filled && text == "true" => visitor.visit_bool(true),
            Value::Text(text) if self.filled && text == "false" => visitor.visit_bool(false),
            _ => self.deserialize_any(visitor),
        }
    }

    /// `public.orders:` with nothing behind it has every setting by default.
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match &self.value {
            Value::Null => visitor
                .visit_map(Entries { entries: [].iter(), value: None })
                .map_err(|problem| problem.in_node(self)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        match &self.value {
            // Serde would take a list as the fields in their order.
            Value::List(_) => {
                Err(de::Error::invalid_type(Unexpected::Seq, &visitor)).map_err(|p: Problem| p.in_node(self))
            }
            _ => self.deserialize_map(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        match &self.value {
            Value::Text(text) => {
                let text: de::value::StrDeserializer<'_, Problem> = text.as_str().into_deserializer();
                visitor.visit_enum(text)
            }
            other => Err(Problem::new(format!("expected a word, found {}", other.kind()))),
        }
        .map_err(|problem| problem.in_node(self))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Problem> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct
        seq tuple tuple_struct identifier ignored_any
    }
}

struct Items<'de>(std::slice::Iter<'de, Node>);

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Problem;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Problem> {
        self.0.next().map(|node| seed.deserialize(node)).transpose()
    }
}

struct Entries<'de> {
    entries: std::slice::Iter<'de, (Key, Node)>,
    value: Option<&'de (Key, Node)>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Problem;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Problem> {
        self.value = self.entries.next();
        let Some((key, _)) = self.value else { return Ok(None) };
        let name: de::value::StrDeserializer<'_, Problem> = key.name.as_str().into_deserializer();
        seed.deserialize(name).map(Some).map_err(|problem| problem.at(key.mark))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Problem> {
        let (key, node) = self.value.take().expect("serde asks for a value after its key");
        seed.deserialize(node).map_err(|problem| {
            let mark = if node.mark == Mark::default() { key.mark } else { node.mark };
            problem.at(mark).under(key)
        })
    }
}
