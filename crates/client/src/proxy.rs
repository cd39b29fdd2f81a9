//! The proxy that the environment names.

use std::ffi::OsString;

use ureq::{Proxy, ProxyProtocol};

use crate::ClientError;

/// Variables that name a proxy; the first that is set counts, for addresses of both schemes.
const VARIABLES: [&str; 6] =
    ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"];
/// Variables that list, with commas between them, the hosts that are reached without it.
const EXCEPTIONS: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// The proxy of an environment, of which `variable` gives the values.
///
/// # Errors
/// [`ClientError::Proxy`]: without the proxy, a connection would be one that the user did not want.
pub(crate) fn proxy_of(
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<Proxy>, ClientError> {
    let value = |name: &'static str| Some((name, variable(name).filter(|text| !text.is_empty())?));
    let Some((name, address)) = VARIABLES.into_iter().find_map(value) else { return Ok(None) };
    let wrong = |problem| ClientError::Proxy { variable: name, problem };
    let named = address.to_str().and_then(|address| Proxy::new(address).ok());
    let named = named.ok_or_else(|| wrong("is no address of a proxy"))?;
    if !matches!(named.protocol(), ProxyProtocol::Http | ProxyProtocol::Https) {
        return Err(wrong("names a SOCKS proxy, and these are not supported"));
    }
    let mut proxy = Proxy::builder(named.protocol()).host(named.host()).port(named.port());
    if let Some(username) = named.username() {
        proxy = proxy.username(username);
    }
    if let Some(password) = named.password() {
        proxy = proxy.password(password);
    }
    if let Some((_, hosts)) = EXCEPTIONS.into_iter().find_map(value) {
        let hosts = hosts.to_string_lossy();
        for host in hosts.split(',').map(str::trim).filter(|host| !host.is_empty()) {
            proxy = proxy.no_proxy(host);
        }
    }
    proxy.build().map(Some).map_err(|_| wrong("is no address of a proxy"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(variables: &[(&str, &str)]) -> Result<Option<Proxy>, String> {
        let found = proxy_of(|name| {
            let value = variables.iter().find(|(known, _)| *known == name);
            value.map(|(_, value)| value.into())
        });
        found.map_err(|error| error.to_string())
    }

    #[test]
    fn the_first_variable_that_is_set_names_the_proxy() {
        assert_eq!(proxy(&[("NO_PROXY", "a"), ("HTTPS_PROXY", "")]), Ok(None));
        for (variables, host, port) in [
            (&[("ALL_PROXY", "socks5://s"), ("https_proxy", "http://a.b:3128")][..], "a.b", 3128),
            (&[("HTTPS_PROXY", "a.b"), ("https_proxy", "c.d")], "a.b", 80),
            (&[("HTTPS_PROXY", ""), ("all_proxy", "https://c.d")], "c.d", 443),
            (&[("HTTP_PROXY", "http://[::1]:8080/")], "[::1]", 8080),
        ] {
            let found = proxy(variables).unwrap().unwrap();
            assert_eq!((found.host(), found.port()), (host, port), "{variables:?}");
        }
        let named = proxy(&[("HTTPS_PROXY", "http://me:p%40ss%3A@a.b:1")]).unwrap().unwrap();
        assert_eq!((named.username(), named.password()), (Some("me"), Some("p@ss:")));
    }

    /// The token went to the hub without the SOCKS proxy that the environment named.
    #[test]
    fn a_proxy_that_cannot_be_used_is_refused_by_its_variable() {
        for (name, value, expected) in [
            ("ALL_PROXY", "socks5://me:secret@a.b:1080", "a SOCKS proxy"),
            ("all_proxy", "socks5h://a.b", "a SOCKS proxy"),
            ("HTTPS_PROXY", "socks4://a.b", "a SOCKS proxy"),
            ("HTTPS_PROXY", "ftp://a.b", "no address of a proxy"),
            ("https_proxy", "http://me:secret@", "no address of a proxy"),
            ("HTTP_PROXY", "a b", "no address of a proxy"),
        ] {
            let error = proxy(&[(name, value)]).unwrap_err();
            assert!(error.starts_with(name) && error.contains(expected), "{value}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn hosts_that_are_excepted_are_reached_without_it() {
        let list = "hub.local, .corp.example,*.mirror";
        let proxy = proxy(&[("HTTPS_PROXY", "http://a.b"), ("no_proxy", list)]).unwrap().unwrap();
        let is_direct =
            |host: &str| proxy.is_no_proxy(&format!("https://{host}/x").parse().unwrap());
        for host in ["hub.local", "a.corp.example", "eu.mirror"] {
            assert!(is_direct(host), "{host}");
        }
        for host in ["huggingface.co", "corp.example", "a.hub.local"] {
            assert!(!is_direct(host), "{host}");
        }
    }
}
