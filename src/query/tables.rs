//! Finds what a name in a statement means: a table, a moment of one, what happened to it, or what
//! its metadata says. Names are listed once a session; tables are loaded when named.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, SchemaProvider, TableProvider};
use datafusion::error::Result as DFResult;

use super::syntax::{AT, CHANGES};
use super::{AsOf, changes, metadata};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{Lake, LakeTable};
use crate::table::TableId;

/// The schema in which a bare table name is looked up: all of them.
pub(super) const ANY_SCHEMA: &str = "*";
/// How unlike a name may be to be proposed: the score of [`strsim::jaro_winkler`].
const LIKENESS: f64 = 0.8;
/// Names that a message lists.
const NAMES_SHOWN: usize = 5;

/// The lake as DataFusion's catalog.
pub(super) struct LakeCatalog(Arc<Names>);

struct Names {
    lake: Lake,
    tables: Vec<TableId>,
    as_of: Option<AsOf>,
}

impl LakeCatalog {
    pub(super) async fn new(lake: &Lake, as_of: Option<AsOf>) -> Result<Self> {
        Ok(Self(Arc::new(Names { tables: lake.tables().await?, lake: lake.clone(), as_of })))
    }
}

impl fmt::Debug for LakeCatalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LakeCatalog").field(&self.0.tables).finish()
    }
}

impl CatalogProvider for LakeCatalog {
    fn schema_names(&self) -> Vec<String> {
        let names: BTreeSet<&str> = self.0.tables.iter().map(schema_of).collect();
        names.into_iter().map(str::to_owned).collect()
    }

    /// Every name is a schema, so that a wrong one is answered where near names are known.
    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        let schema = (name != ANY_SCHEMA).then(|| name.to_owned());
        Some(Arc::new(LakeSchema { names: self.0.clone(), schema }))
    }
}

fn schema_of(id: &TableId) -> &str {
    id.schema_or(crate::lake::DEFAULT_NAMESPACE)
}

/// One schema of the lake, or all of them.
struct LakeSchema {
    names: Arc<Names>,
    schema: Option<String>,
}

impl fmt::Debug for LakeSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LakeSchema").field(&self.schema).finish()
    }
}

#[async_trait]
impl SchemaProvider for LakeSchema {
    fn table_names(&self) -> Vec<String> {
        self.tables().map(|id| id.name.clone()).collect()
    }

    async fn table(&self, name: &str) -> DFResult<Option<Arc<dyn TableProvider>>> {
        Ok(Some(self.find(name).await?))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.tables().any(|id| id.name == name)
    }
}

impl LakeSchema {
    fn tables(&self) -> impl Iterator<Item = &TableId> {
        let schema = self.schema.as_deref();
        self.names.tables.iter().filter(move |id| schema.is_none_or(|schema| schema_of(id) == schema))
    }

    async fn find(&self, name: &str) -> Result<Arc<dyn TableProvider>> {
        if self.table_exist(name) {
            return self.at(&self.load(name).await?, self.names.as_of.as_ref()).await;
        }
        if let Some((name, moment)) = name.split_once(AT) {
            return self.at(&self.load(name).await?, Some(&moment.parse()?)).await;
        }
        if let Some((name, range)) = name.split_once(CHANGES) {
            return self.changes(&self.load(name).await?, range).await;
        }
        if let Some((name, what)) = name.rsplit_once('$') {
            let table = self.load(name).await?;
            let at = self.moment(&table, self.names.as_of.as_ref())?;
            return metadata::table(&table, what, at).await;
        }
        Err(self.unknown(name))
    }

    async fn at(&self, table: &LakeTable, as_of: Option<&AsOf>) -> Result<Arc<dyn TableProvider>> {
        table.provider_with_views(self.moment(table, as_of)?).await
    }

    fn moment(&self, table: &LakeTable, as_of: Option<&AsOf>) -> Result<Option<crate::delta::SnapshotId>> {
        as_of.map(|as_of| as_of.resolve(table)).transpose()
    }

    async fn changes(&self, table: &LakeTable, range: &str) -> Result<Arc<dyn TableProvider>> {
        let (from, to) = range.split_once("..").unwrap_or((range, ""));
        let moment = |text: &str| match text {
            "" => Ok(None),
            text => self.moment(table, Some(&text.parse()?)),
        };
        let from = moment(from)?;
        let to = moment(to)?.or(self.moment(table, self.names.as_of.as_ref())?).or(table.current());
        changes::between(table, from, to).await
    }

    async fn load(&self, name: &str) -> Result<LakeTable> {
        let mut found = self.tables().filter(|id| id.name == name);
        let Some(id) = found.next() else { return Err(self.unknown(name)) };
        if let Some(other) = found.next() {
            return Err(Error::new(ErrorKind::Config, format!("`{name}` is a table of several schemas"))
                .hint(format!("write `{id}` or `{other}`")));
        }
        self.names.lake.table(id).await?.ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &str) -> Error {
        let wanted = self.schema.as_ref().map_or(name.to_owned(), |schema| format!("{schema}.{name}"));
        let near = |id: &&TableId| {
            let (full, own) = (id.to_string(), strsim::jaro_winkler(&id.name, name));
            own.max(strsim::jaro_winkler(&full, &wanted)) >= LIKENESS
        };
        let tables = &self.names.tables;
        let list = |ids: Vec<&TableId>| {
            ids.into_iter().take(NAMES_SHOWN).map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ")
        };
        let near: Vec<&TableId> = tables.iter().filter(near).collect();
        let hint = match (near.is_empty(), tables.is_empty()) {
            (false, _) => format!("did you mean {}?", list(near)),
            (true, true) => "the lake has no tables yet".to_owned(),
            (true, false) => format!("the lake has {}", list(tables.iter().collect())),
        };
        Error::new(ErrorKind::Config, format!("there is no table `{wanted}` in the lake")).hint(hint)
    }
}
