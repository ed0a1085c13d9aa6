//! The JSON that the lake keeps as a source's watermark: the same frame around each database's own words.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::delta::Watermark;

/// What this build writes and reads.
const VERSION: u32 = 1;

/// A watermark, taken apart; `P` is how far a table was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored<P> {
    v: u32,
    /// The database that it was read in: positions of another one mean nothing here.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source: Option<String>,
    /// How far.
    #[serde(flatten)]
    pub position: P,
}

impl<P: Serialize + DeserializeOwned> Stored<P> {
    /// A position in a database.
    pub fn new(source: Option<String>, position: P) -> Self {
        Self { v: VERSION, source, position }
    }

    /// What a watermark says, or why it cannot be used.
    pub fn read(watermark: &Watermark) -> Result<Self, &'static str> {
        let stored: Self = serde_json::from_str(watermark.as_str()).map_err(|_| "it is not readable")?;
        if stored.v == VERSION { Ok(stored) } else { Err("another version wrote it") }
    }

    /// The watermark.
    pub fn write(&self) -> Watermark {
        Watermark::new(serde_json::to_string(self).expect("plain data is always JSON"))
    }
}

/// Makes a whole number a text in JSON, so that no reader rounds it.
macro_rules! as_text {
    ($of:ident) => {
        impl TryFrom<String> for $of {
            type Error = std::num::ParseIntError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse().map(Self)
            }
        }

        impl From<$of> for String {
            fn from(value: $of) -> Self {
                value.0.to_string()
            }
        }
    };
}
pub(crate) use as_text;

/// An integer, as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Number(pub i64);
as_text!(Number);
