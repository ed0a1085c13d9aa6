//! Files under a prefix that are reached in a way of their own: with credentials that a catalog vends
//! for one table, and that end.
//!
//! ```text
//! s3://bucket ─▶ Routes ─┬─ longest prefix ─▶ Renewed ─▶ store of a/table, opened anew in time
//!                        └─ none ───────────▶ the store that the user's options open
//! ```
//!
//! DataFusion knows stores by bucket only, so the routes are one store to it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use tokio::sync::Mutex;

use super::{Place, Stores};

/// Credentials are renewed this long before they end: longer than any single request takes.
const MARGIN: Duration = Duration::from_secs(120);
/// Of short-lived credentials, this part of their life.
const MARGIN_PART: u32 = 5;
/// A store that refuses credentials of unknown life is asked again with new ones, if they are older.
const OLD: Duration = Duration::from_secs(60);
/// Deletions that are under way at a time: prefixes are deleted file by file.
const DELETIONS: usize = 16;

/// How a prefix is reached.
#[derive(Clone, PartialEq)]
pub(in crate::lake) struct Vended {
    /// Options of the store; hold secrets.
    pub(in crate::lake) options: BTreeMap<String, String>,
    /// When they end, if that is known.
    pub(in crate::lake) ends: Option<SystemTime>,
}

/// Gives new options when the old ones end.
#[async_trait]
pub(in crate::lake) trait Vendor: Send + Sync {
    async fn vend(&self) -> crate::Result<Vended>;
}

impl Stores {
    /// From now on, files under `prefix` are reached by what a catalog has vended.
    pub(in crate::lake) fn vend(
        &self,
        prefix: &str,
        vended: Vended,
        vendor: Arc<dyn Vendor>,
    ) -> crate::Result<()> {
        let place = Place::parse(prefix)?;
        let routes = self.routes(&place)?;
        let path = place.path.trim_matches('/').to_owned();
        let mut all = routes.routes.write().unwrap_or_else(PoisonError::into_inner);
        // Each load of a table brings new ones; a store that is good keeps its open connections.
        if all.get(&path).is_some_and(|route| route.given == vended || route.is_good()) {
            return Ok(());
        }
        let base = format!("{}/", place.base());
        let store = open(&base, &vended)?;
        let state = Mutex::new(State { store, got: SystemTime::now(), ends: vended.ends });
        all.insert(path, Arc::new(Renewed { base, given: vended, vendor, state }));
        Ok(())
    }

    /// The routes of a bucket; its plain store becomes the one for all other files.
    fn routes(&self, place: &Place<'_>) -> crate::Result<Arc<Routes>> {
        let mut routed = self.routed.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(routes) = routed.get(&place.base()) {
            return Ok(routes.clone());
        }
        let (others, _) = self.resolve(&format!("{}/", place.base()))?;
        let routes = Arc::new(Routes { others, routes: RwLock::default() });
        routed.insert(place.base(), routes.clone());
        self.by_base.write().unwrap_or_else(PoisonError::into_inner).insert(place.base(), routes.clone());
        Ok(routes)
    }
}

fn open(base: &str, vended: &Vended) -> crate::Result<Arc<dyn ObjectStore>> {
    let stores = Stores::new(vended.options.clone());
    Ok(stores.resolve(base)?.0)
}

/// One bucket.
#[derive(Debug)]
pub(super) struct Routes {
    others: Arc<dyn ObjectStore>,
    /// By path, without slashes around it.
    routes: RwLock<BTreeMap<String, Arc<Renewed>>>,
}

impl fmt::Display for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.others)
    }
}

impl Routes {
    fn route(&self, path: &Path) -> Option<Arc<Renewed>> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let under = |prefix: &str| {
            let rest = path.as_ref().strip_prefix(prefix);
            rest.is_some_and(|rest| prefix.is_empty() || rest.is_empty() || rest.starts_with('/'))
        };
        routes
            .iter()
            .filter(|(prefix, _)| under(prefix))
            .max_by_key(|(prefix, _)| prefix.len())
            .map(|(_, r)| r.clone())
    }

    /// Does something with the store of a path; once more with new credentials if these were refused.
    async fn with<T, F>(&self, path: &Path, work: impl Fn(Arc<dyn ObjectStore>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let Some(route) = self.route(path) else { return work(self.others.clone()).await };
        let outcome = work(route.store(false).await?).await;
        match outcome {
            Err(error) if refused(&error) && route.is_old().await => work(route.store(true).await?).await,
            outcome => outcome,
        }
    }
}

/// The store of one prefix.
struct Renewed {
    base: String,
    given: Vended,
    vendor: Arc<dyn Vendor>,
    state: Mutex<State>,
}

struct State {
    store: Arc<dyn ObjectStore>,
    got: SystemTime,
    ends: Option<SystemTime>,
}

impl State {
    fn is_over(&self) -> bool {
        self.ends.is_some_and(|ends| {
            let life = ends.duration_since(self.got).unwrap_or_default();
            SystemTime::now() + MARGIN.min(life / MARGIN_PART) >= ends
        })
    }
}

impl Renewed {
    async fn store(&self, refused: bool) -> Result<Arc<dyn ObjectStore>> {
        let mut state = self.state.lock().await;
        if refused || state.is_over() {
            let vended = self.vendor.vend().await.map_err(ours)?;
            let store = open(&self.base, &vended).map_err(ours)?;
            *state = State { store, got: SystemTime::now(), ends: vended.ends };
        }
        Ok(state.store.clone())
    }

    /// It is known when the credentials end, and that is not soon. One that is being renewed is good.
    fn is_good(&self) -> bool {
        self.state.try_lock().map_or(true, |state| state.ends.is_some() && !state.is_over())
    }

    async fn is_old(&self) -> bool {
        let state = self.state.lock().await;
        state.ends.is_none() && state.got.elapsed().is_ok_and(|age| age > OLD)
    }
}

impl fmt::Debug for Renewed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewed").field("base", &self.base).finish_non_exhaustive()
    }
}

/// An error of ours travels inside the store's, and comes out of it in `store_error`.
fn ours(error: crate::Error) -> Error {
    Error::Generic { store: "vended", source: Box::new(error) }
}

fn refused(error: &Error) -> bool {
    match error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => true,
        // S3 says so with status 400.
        Error::Generic { source, .. } => source.to_string().contains("ExpiredToken"),
        _ => false,
    }
}

#[async_trait]
impl ObjectStore for Routes {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let put = |store: Arc<dyn ObjectStore>| {
            let (payload, options) = (payload.clone(), options.clone());
            async move { store.put_opts(location, payload, options).await }
        };
        self.with(location, put).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let start = |store: Arc<dyn ObjectStore>| {
            let options = options.clone();
            async move { store.put_multipart_opts(location, options).await }
        };
        self.with(location, start).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let get = |store: Arc<dyn ObjectStore>| {
            let options = options.clone();
            async move { store.get_opts(location, options).await }
        };
        self.with(location, get).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.with(location, |store| async move { store.get_ranges(location, ranges).await }).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let routes = self.copy();
        let delete = move |location: Result<Path>| {
            let routes = routes.copy();
            async move {
                let location = location?;
                let path = &location;
                routes.with(path, |store| async move { store.delete(path).await }).await?;
                Ok(location)
            }
        };
        locations.map(delete).buffered(DELETIONS).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (routes, prefix) = (self.copy(), prefix.cloned());
        let opened = async move {
            let at = prefix.clone().unwrap_or_default();
            let store = routes.with(&at, |store| async move { Ok(store) }).await?;
            Ok::<_, Error>(store.list(prefix.as_ref()))
        };
        stream::once(opened).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let at = prefix.cloned().unwrap_or_default();
        self.with(&at, |store| async move { store.list_with_delimiter(prefix).await }).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let copy = |store: Arc<dyn ObjectStore>| {
            let options = options.clone();
            async move { store.copy_opts(from, to, options).await }
        };
        self.with(to, copy).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let rename = |store: Arc<dyn ObjectStore>| {
            let options = options.clone();
            async move { store.rename_opts(from, to, options).await }
        };
        self.with(to, rename).await
    }
}

impl Routes {
    /// The routes as they are now, for work that outlives a borrow.
    fn copy(&self) -> Self {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner).clone();
        Self { others: self.others.clone(), routes: RwLock::new(routes) }
    }
}
