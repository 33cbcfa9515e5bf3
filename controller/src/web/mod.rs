//! The dashboard: pages made on the server, for people with a browser and no internet.
//!
//! A page is a function of what the services behind the API say; nothing is decided here. [`guard`] lets people in: a
//! session begun with an API token ([`session`], [`sign`]), the same roles as the API ([`RouteRule`]), a word against
//! forged forms. [`plot`] is pure: numbers in, SVG and a table out. Text from devices goes through the templates only,
//! which escape it; the content security policy forbids anything inline.
//!
//! Without scripts everything works. `assets/app.js` adds the switch between light and dark, and fetches a page again
//! when the controller says that something on it changed.

mod advice;
mod answer;
mod assets;
mod device;
mod findings;
mod fleet;
mod guard;
mod layout;
mod live;
mod models;
mod overview;
mod people;
mod plot;
mod rollouts;
mod session;
mod sign;
mod take;
#[cfg(test)]
mod tests;
mod words;

use crate::{
    api::{
        access::{Access, RouteRule},
        operations::Operations,
    },
    captures::Captures,
    clock::Clock,
    fleet::roles::Permission,
    store::announced::Changes,
};
use axum::{
    Router,
    handler::Handler,
    http::Method,
    middleware::from_fn_with_state,
    routing::{MethodRouter, get, post},
};
use edgefleet_shared::time::Timestamp;
use session::Sessions;
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// What the pages are made from.
pub struct WebParts {
    pub operations: Arc<Operations>,
    pub captures: Arc<Captures>,
    pub clock: Clock,
    /// What live pages listen to.
    pub changes: Changes,
    /// Ends their streams.
    pub stop: CancellationToken,
}

/// The finished pages.
#[derive(Default)]
pub struct Pages {
    pub router: Router,
    /// Every page and who may see it.
    pub rules: Vec<RouteRule>,
}

/// What handlers work with.
struct Web {
    operations: Arc<Operations>,
    captures: Arc<Captures>,
    sessions: Sessions,
    clock: Clock,
    rules: BTreeMap<(String, Method), Access>,
    changes: Changes,
    streams: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Web {
    fn now(&self) -> Timestamp {
        (self.clock)()
    }
}

/// Puts all pages together.
pub fn pages(parts: WebParts) -> Pages {
    let Table { router, rules } = table();
    let key = |rule: &RouteRule| ((rule.path.clone(), rule.method.clone()), rule.access);
    let web = Arc::new(Web {
        operations: parts.operations,
        captures: parts.captures,
        sessions: Sessions::default(),
        clock: parts.clock,
        rules: rules.iter().map(key).collect(),
        changes: parts.changes,
        streams: Arc::new(Semaphore::new(live::MOST)),
        stop: parts.stop,
    });
    let router = router.route_layer(from_fn_with_state(web.clone(), guard::guard)).with_state(web);
    Pages { router, rules }
}

/// Every page and who may see it.
pub fn rules() -> Vec<RouteRule> {
    table().rules
}

fn table() -> Table {
    let all = Table::default();
    let all = sign::routes(assets::routes(all));
    let all = models::routes(take::routes(advice::routes(findings::routes(all))));
    let all = rollouts::routes(device::routes(fleet::routes(all)));
    live::routes(people::routes(overview::routes(all)))
}

/// Pages with their rules: neither can be added without the other.
#[derive(Default)]
struct Table {
    router: Router<Arc<Web>>,
    rules: Vec<RouteRule>,
}

impl Table {
    fn get<H: Handler<T, Arc<Web>>, T: 'static>(self, path: &str, who: Permission, page: H) -> Self {
        self.add(Method::GET, path, Access::Token(who), get(page))
    }
    fn post<H: Handler<T, Arc<Web>>, T: 'static>(self, path: &str, who: Permission, form: H) -> Self {
        self.add(Method::POST, path, Access::Token(who), post(form))
    }
    /// For people who are not signed in.
    fn open<H: Handler<T, Arc<Web>>, T: 'static>(self, method: Method, path: &str, page: H) -> Self {
        let route = if method == Method::POST { post(page) } else { get(page) };
        self.add(method, path, Access::Public, route)
    }
    fn add(mut self, method: Method, path: &str, access: Access, route: MethodRouter<Arc<Web>>) -> Self {
        self.rules.push(RouteRule { method, path: path.to_owned(), access });
        Self { router: self.router.route(path, route), rules: self.rules }
    }
}
