//! What the user said about the catalog, in the words of Iceberg's REST clients.

use std::collections::BTreeMap;
use std::fmt;

use url::Url;

use crate::error::{Error, ErrorKind, Result};
use crate::lake::catalog::CatalogSettings;

/// Options of the catalog.
const KNOWN: [&str; 14] = [
    "token",
    "credential",
    "oauth2-server-uri",
    "scope",
    "audience",
    "resource",
    "prefix",
    "ssl.cabundle",
    "rest.sigv4-enabled",
    "rest.signing-name",
    "rest.signing-region",
    "rest.access-key-id",
    "rest.secret-access-key",
    "rest.session-token",
];
/// Options that go with every request: `header.X-Tenant`.
const HEADER: &str = "header.";
/// Options whose values never show.
const SECRET: [&str; 4] = ["token", "credential", "rest.secret-access-key", "rest.session-token"];

/// Where a catalog is, and how it is told who we are. `Debug` shows names only.
#[derive(Clone)]
pub(super) struct Options {
    /// Without a slash at the end.
    pub(super) address: Url,
    /// The catalog's name for the lake; may be empty.
    pub(super) warehouse: String,
    /// By name, [`HEADER`] ones left out.
    said: BTreeMap<String, String>,
    pub(super) headers: BTreeMap<String, String>,
    /// The user's options of the stores.
    pub(super) store: BTreeMap<String, String>,
}

impl Options {
    /// `warehouse` is the catalog's name for the lake, unless the settings name the catalog; `store` are
    /// the options of the stores.
    pub(super) fn new(
        settings: &CatalogSettings,
        warehouse: &str,
        store: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let address = Url::parse(settings.url.trim_end_matches('/')).map_err(|source| {
            Error::new(ErrorKind::Config, "the catalog's address is not a URL")
                .hint("`catalog: https://host/path`, without `/v1`")
                .because(source)
        })?;
        if !address.username().is_empty() || address.password().is_some() || address.query().is_some() {
            return Err(Error::new(ErrorKind::Config, "the catalog's address has more than host and path")
                .hint("put a login into the options `credential` or `token`, not into the address"));
        }
        let mut options = Self {
            address,
            warehouse: settings.name.clone().unwrap_or_else(|| warehouse.to_owned()),
            said: BTreeMap::new(),
            headers: BTreeMap::new(),
            store: store.clone(),
        };
        for (name, value) in &settings.options {
            let (map, name) = match name.strip_prefix(HEADER) {
                Some(header) => (&mut options.headers, header),
                None if KNOWN.contains(&name.as_str()) => (&mut options.said, name.as_str()),
                None => {
                    let known = KNOWN.join(", ");
                    return Err(Error::new(
                        ErrorKind::Config,
                        format!("`{name}` is not an option of the catalog"),
                    )
                    .hint(format!(
                        "known are {known} and `header.…`; options of the store go under `lake.options`"
                    )));
                }
            };
            map.insert(name.to_owned(), value.clone());
        }
        Ok(options)
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        debug_assert!(KNOWN.contains(&name), "{name} is not split off");
        self.said.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// What must not show, wherever a server repeats it.
    pub(super) fn secrets(&self) -> Vec<String> {
        let said = SECRET.iter().filter_map(|name| self.get(name));
        let parts = said.flat_map(|value| [Some(value), value.split_once(':').map(|(_, secret)| secret)]);
        let headers = self.headers.values().map(String::as_str).map(Some);
        parts.chain(headers).flatten().map(str::to_owned).collect()
    }

    /// The service and region that requests are signed for, if they are.
    pub(super) fn signing(&self) -> Result<Option<(String, String)>> {
        let of_aws = self.address.host_str().and_then(aws_service);
        let enabled = match self.get("rest.sigv4-enabled") {
            Some(said) => said.eq_ignore_ascii_case("true"),
            None => of_aws.is_some(),
        };
        if !enabled {
            return Ok(None);
        }
        let (service, region) = of_aws.unzip();
        // The default of the protocol's clients: a gateway of AWS in front of a catalog.
        let service = self.get("rest.signing-name").or(service).unwrap_or("execute-api");
        let store = ["s3.region", "client.region"];
        let store = store.iter().find_map(|name| self.store.get(*name)).map(String::as_str);
        let region = self.get("rest.signing-region").or(region).or(store).ok_or_else(|| {
            Error::new(ErrorKind::Config, "requests to the catalog are signed, and for no region")
                .hint("set the option `rest.signing-region`")
        })?;
        Ok(Some((service.to_owned(), region.to_owned())))
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("address", &self.address.as_str())
            .field("said", &self.said.keys())
            .finish_non_exhaustive()
    }
}

/// `glue.eu-west-1.amazonaws.com` → glue, eu-west-1. Glue and S3 Tables take signed requests only.
fn aws_service(host: &str) -> Option<(&str, &str)> {
    let rest = host.strip_suffix(".amazonaws.com").or_else(|| host.strip_suffix(".amazonaws.com.cn"))?;
    let (service, region) = rest.split_once('.')?;
    matches!(service, "glue" | "s3tables").then_some((service, region))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(catalog: &str, said: &[(&str, &str)]) -> Result<Options> {
        let map = |of: &[(&str, &str)]| of.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let settings = CatalogSettings { options: map(said), ..catalog.into() };
        Options::new(&settings, "w", &map(&[("s3.region", "of the store")]))
    }

    #[test]
    fn options_are_known_and_hide_their_secrets() {
        let said = [("credential", "me:secret"), ("header.X-Tenant", "t"), ("scope", "s")];
        let options = options("https://h/api/catalog/", &said).unwrap();
        assert_eq!(options.address.as_str(), "https://h/api/catalog");
        assert_eq!(options.get("credential"), Some("me:secret"));
        assert_eq!(options.headers["X-Tenant"], "t");
        assert_eq!(options.secrets(), ["me:secret", "secret", "t"]);
        assert!(!format!("{options:?}").contains("secret"));
        let error = super::tests::options("https://h", &[("s3.region", "x")]).unwrap_err();
        assert!(error.hint_text().unwrap().contains("`lake.options`"), "{error:?}");
    }

    #[test]
    fn aws_endpoints_are_signed_for_without_being_told() {
        let signing = |catalog, said: &[_]| options(catalog, said).unwrap().signing();
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(
            signing("https://glue.eu-west-1.amazonaws.com/iceberg", &[]).unwrap(),
            pair("glue", "eu-west-1")
        );
        assert_eq!(
            signing("https://s3tables.us-east-2.amazonaws.com/iceberg", &[("rest.signing-region", "x")])
                .unwrap(),
            pair("s3tables", "x")
        );
        assert_eq!(signing("https://h", &[]).unwrap(), None);
        let enabled = ("rest.sigv4-enabled", "true");
        assert_eq!(signing("https://h", &[enabled]).unwrap(), pair("execute-api", "of the store"));
        let nowhere = CatalogSettings {
            options: [("rest.sigv4-enabled".into(), "true".into())].into(),
            ..CatalogSettings::from("https://h")
        };
        let error = Options::new(&nowhere, "w", &BTreeMap::new()).unwrap().signing().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
    }

    #[test]
    fn a_login_in_the_address_is_refused_and_not_repeated() {
        let error = options("https://me:secret@h/", &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(!format!("{error:?}").contains("secret"));
    }
}
