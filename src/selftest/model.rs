//! What the source holds, and every state that it ever committed: the oracle.
//!
//! The model learns of a transaction when the source has committed it. Nothing that frazil reads or
//! writes has a part in it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::values::{Kind, Value};

/// How a stream finds changes, and what that lets us expect of each snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Read whole: each snapshot is one committed state.
    Whole,
    /// By a time that is the moment of the change, or some time before it: then the stream has a `lag`.
    Stamped { late: bool },
    /// By a growing key, and only ever added to.
    Added,
}

/// A table as it begins.
pub(super) struct Spec {
    pub(super) name: &'static str,
    pub(super) columns: &'static [(&'static str, Kind)],
    /// How many of the first columns are the key.
    pub(super) key: usize,
    pub(super) how: How,
    /// Whether rows are deleted and keys changed; otherwise the stream could not see it.
    pub(super) deletes: bool,
}

/// The column that holds the time of the last change.
pub(super) const STAMP: &str = "updated_at";

/// The table of whose rows the target refuses some.
pub(super) const PICKY: &str = "orders";

/// What the target asks of these rows.
pub(super) const PICKY_CHECK: &str = "id % 7 <> 3";

/// The id of a row that the target refuses.
pub(super) fn refused(spec: &Spec, row: &[Value]) -> Option<i64> {
    let id = row[0].as_deref().filter(|_| spec.name == PICKY)?.parse().ok()?;
    (id % 7 == 3).then_some(id)
}

/// The tables, one for each way to find changes, with keys of several types.
pub(super) const SPECS: [Spec; 5] = [
    Spec {
        name: "goods",
        columns: &[
            ("code", Kind::Text),
            ("title", Kind::Text),
            ("price", Kind::Decimal),
            ("weight", Kind::Double),
            ("picture", Kind::Bytes),
            ("listed", Kind::Bool),
            ("made", Kind::Date),
        ],
        key: 1,
        how: How::Whole,
        deletes: true,
    },
    Spec {
        name: "lines",
        columns: &[
            ("order_id", Kind::Long),
            ("line", Kind::Int),
            ("quantity", Kind::Int),
            ("note", Kind::Text),
            ("due", Kind::Moment),
        ],
        key: 2,
        how: How::Whole,
        deletes: true,
    },
    Spec {
        name: "orders",
        columns: &[
            ("id", Kind::Long),
            ("status", Kind::Text),
            ("total", Kind::Decimal),
            ("gone", Kind::Bool),
            (STAMP, Kind::Moment),
        ],
        key: 1,
        how: How::Stamped { late: true },
        deletes: false,
    },
    Spec {
        name: "visits",
        columns: &[
            ("day", Kind::Date),
            ("visitor", Kind::Text),
            ("pages", Kind::Int),
            ("seconds", Kind::Double),
            ("gone", Kind::Bool),
            (STAMP, Kind::Moment),
        ],
        key: 2,
        how: How::Stamped { late: false },
        deletes: false,
    },
    Spec {
        name: "events",
        columns: &[("id", Kind::Long), ("what", Kind::Text), ("amount", Kind::Decimal), ("at", Kind::Moment)],
        key: 1,
        how: How::Added,
        deletes: false,
    },
];

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: Kind,
}

/// A row: its values in the order of the columns.
pub(super) type Row = Arc<Vec<Value>>;

/// A row's key as one text, to find it by.
pub(super) type Key = Arc<str>;

/// A table at one moment.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) columns: Arc<Vec<Column>>,
    pub(super) rows: BTreeMap<Key, Row>,
}

impl State {
    pub(super) fn index(&self, column: &str) -> Option<usize> {
        self.columns.iter().position(|known| known.name == column)
    }
}

/// The key of a row.
pub(super) fn key_of(row: &[Value], key: usize) -> Key {
    row[..key].iter().map(|value| value.as_deref().unwrap_or("∅")).collect::<Vec<_>>().join("\u{1f}").into()
}

/// A change of one row.
#[derive(Debug, Clone)]
pub(super) enum Edit {
    Insert(Vec<Value>),
    /// The row of this key becomes that; its key may be another.
    Update(Key, Vec<Value>),
    Delete(Key),
}

/// A table of the source with its past.
pub(super) struct Table {
    pub(super) spec: &'static Spec,
    pub(super) now: State,
    /// Committed states that a snapshot may still show, the oldest first, with their numbers.
    past: VecDeque<(u64, State)>,
    committed: u64,
    /// Keys that open transactions have touched: nobody else may until they have ended.
    pub(super) held: BTreeSet<Key>,
    /// Rows that were deleted: they may come back.
    pub(super) deleted: Vec<Vec<Value>>,
    /// Draws keys that were never there.
    pub(super) next_key: i64,
    /// Names of new columns.
    pub(super) next_column: u32,
}

impl Table {
    pub(super) fn new(spec: &'static Spec) -> Self {
        let columns =
            spec.columns.iter().map(|(name, kind)| Column { name: (*name).to_owned(), kind: *kind });
        let now = State { columns: Arc::new(columns.collect()), rows: BTreeMap::new() };
        let past = VecDeque::from([(0, now.clone())]);
        Self {
            spec,
            now,
            past,
            committed: 0,
            held: BTreeSet::new(),
            deleted: Vec::new(),
            next_key: 1,
            next_column: 0,
        }
    }

    /// The source has committed these changes.
    pub(super) fn commit(&mut self, edits: &[Edit]) {
        for edit in edits {
            match edit {
                Edit::Insert(row) => {
                    self.now.rows.insert(key_of(row, self.spec.key), Arc::new(row.clone()));
                }
                Edit::Update(key, row) => {
                    self.now.rows.remove(key);
                    self.now.rows.insert(key_of(row, self.spec.key), Arc::new(row.clone()));
                }
                Edit::Delete(key) => {
                    if let Some(row) = self.now.rows.remove(key) {
                        self.deleted.push(row.to_vec());
                    }
                }
            }
        }
        self.remember();
    }

    /// The source has committed another shape: the new columns, and how the values of each row move.
    pub(super) fn reshape(&mut self, columns: Vec<Column>, moved: impl Fn(&[Value]) -> Vec<Value>) {
        self.now.columns = Arc::new(columns);
        for row in self.now.rows.values_mut() {
            *row = Arc::new(moved(row));
        }
        // Their columns may be others now.
        self.deleted.clear();
        self.remember();
    }

    fn remember(&mut self) {
        self.committed += 1;
        self.past.push_back((self.committed, self.now.clone()));
    }

    /// How many states were committed.
    pub(super) fn states(&self) -> u64 {
        self.committed
    }

    /// Committed states from `number` on.
    pub(super) fn since(&self, number: u64) -> impl DoubleEndedIterator<Item = (u64, &State)> {
        self.past.iter().filter(move |(n, _)| *n >= number).map(|(n, state)| (*n, state))
    }

    /// No snapshot to come can show a state before this.
    pub(super) fn forget_before(&mut self, number: u64) {
        while self.past.front().is_some_and(|(n, _)| *n < number) && self.past.len() > 1 {
            self.past.pop_front();
        }
    }
}
