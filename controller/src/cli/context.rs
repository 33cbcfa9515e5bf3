//! What every command shares: how to print, and where the controller is.

use super::{
    client::ApiClient,
    contexts::{Contexts, Known},
    failure::Failure,
};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

const MAX_SMALL_FILE: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs: one JSON document on standard output.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Flags of every command.
#[derive(Args, Clone, Debug, Default)]
pub struct GlobalArgs {
    /// How to print results
    #[arg(long, global = true, value_enum, default_value_t, env = "EDGEFLEET_OUTPUT")]
    pub output: Output,
    /// The controller, for example https://controller:8443
    #[arg(long, global = true, value_name = "URL", env = "EDGEFLEET_SERVER")]
    pub server: Option<String>,
    /// API token
    #[arg(long, global = true, value_name = "TOKEN", env = "EDGEFLEET_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// The controller's CA certificate (PEM)
    #[arg(long, global = true, value_name = "FILE", env = "EDGEFLEET_CA")]
    pub ca: Option<PathBuf>,
    /// A controller that `edgefleet login` remembered, unless --server or --data names one [default: the one in use]
    #[arg(long, global = true, value_name = "NAME", env = "EDGEFLEET_CONTEXT")]
    pub context: Option<String>,
    /// The controller's data folder: on its own machine this is enough to find and enter it
    #[arg(long, global = true, value_name = "DIR", env = "EDGEFLEET_DATA")]
    pub data: Option<PathBuf>,
}

/// `<data>/run/addresses.json`, written by a running controller.
#[derive(Debug, Deserialize)]
struct Addresses {
    https: String,
}

/// One invocation of a command.
#[derive(Clone, Debug)]
pub struct Context {
    pub output: Output,
    args: GlobalArgs,
}

impl Context {
    pub fn new(args: GlobalArgs) -> Self {
        Self { output: args.output, args }
    }

    /// The controller's data folder, if it was named.
    pub fn data(&self) -> Option<&Path> {
        self.args.data.as_deref()
    }

    /// A client of the controller: flags and environment first, then what lies in the data folder, then what
    /// `edgefleet login` remembered.
    ///
    /// # Errors
    /// [`Failure`] that says what is missing and how to give it.
    pub fn client(&self) -> Result<ApiClient, Failure> {
        let GlobalArgs { server, token, ca, data, context, .. } = &self.args;
        // A token for one controller is never sent to another.
        let is_named = server.is_some() || data.is_some();
        let contexts = if is_named { Contexts::default() } else { Contexts::read()? };
        if let Some(known) = contexts.choose(context.as_deref().filter(|_| !is_named))? {
            let mut known = known.clone();
            if let Some(token) = token {
                known.token.clone_from(token);
            }
            if let Some(ca) = ca {
                known.ca = read_text(ca).map_err(|e| unreadable("CA certificate", ca, &e))?;
            }
            return known.client();
        }
        let known = self.named(None)?;
        if known.token.is_empty() {
            return Err(Failure::usage("no token was given").hint("use --token or EDGEFLEET_TOKEN"));
        }
        known.client()
    }

    /// The controller that flags, environment and data folder name; its token is empty if they name none.
    ///
    /// # Errors
    /// [`Failure`] that says what is missing and how to give it.
    pub(super) fn named(&self, url: Option<&str>) -> Result<Known, Failure> {
        let data = self.data();
        let server = match (url.or(self.args.server.as_deref()), data) {
            (Some(server), _) => server.to_owned(),
            (None, Some(data)) => running(data)?,
            (None, None) => {
                return Err(Failure::usage("no controller was named").hint(
                    "`edgefleet login URL --ca FILE` once, or use --server URL with --token and --ca, \
                     or --data DIR on the controller's machine",
                ));
            }
        };
        let token = match (&self.args.token, data) {
            (Some(token), _) => token.clone(),
            (None, Some(data)) => {
                let path = data.join("admin-token");
                let read = read_text(&path).map_err(|e| unreadable("token", &path, &e))?;
                read.trim().to_owned()
            }
            (None, None) => String::new(),
        };
        let ca = match (&self.args.ca, data) {
            (Some(path), _) => path.clone(),
            (None, Some(data)) => data.join("ca").join("ca.pem"),
            (None, None) => {
                return Err(Failure::usage("the controller's CA certificate was not named").hint(
                    "use --ca FILE or EDGEFLEET_CA; it lies in the controller's data folder, ca/ca.pem",
                ));
            }
        };
        let ca = read_text(&ca).map_err(|e| unreadable("CA certificate", &ca, &e))?;
        Ok(Known { server, token, ca })
    }

    /// Prints a result: `value` as JSON, or what `table` writes.
    ///
    /// # Errors
    /// If standard output is gone.
    pub fn print<T: Serialize>(&self, value: &T, table: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        let text = match self.output {
            Output::Json => serde_json::to_string_pretty(value)?,
            // By way of JSON: the same names and the same form of every value.
            Output::Yaml => serde_saphyr::to_string(&serde_json::to_value(value)?)?,
            // Much of it is what devices and models say of themselves; a terminal must not obey it.
            Output::Table => table(value).replace(|c: char| c.is_control() && c != '\n', "\u{fffd}"),
        };
        let mut out = io::stdout().lock();
        writeln!(out, "{}", text.trim_end())?;
        Ok(())
    }
}

impl Known {
    pub(super) fn client(&self) -> Result<ApiClient, Failure> {
        ApiClient::new(&self.server, &self.token, self.ca.as_bytes())
    }
}

fn running(data: &Path) -> Result<String, Failure> {
    let path = data.join("run").join("addresses.json");
    let text = read_text(&path).map_err(|e| {
        unreadable("address", &path, &e).hint(format!(
            "is the controller running? start it with `edgefleet serve --data {}`",
            data.display()
        ))
    })?;
    let addresses: Addresses = serde_json::from_str(&text)?;
    // A listener on every address is reached on this machine's own.
    let https = addresses.https.replacen("0.0.0.0:", "127.0.0.1:", 1).replacen("[::]:", "127.0.0.1:", 1);
    Ok(format!("https://{https}"))
}

fn read_text(path: &Path) -> io::Result<String> {
    use io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_SMALL_FILE).read_to_string(&mut text)?;
    Ok(text)
}

fn unreadable(what: &str, path: &Path, error: &io::Error) -> Failure {
    let mut failure =
        Failure::new(format!("could not read the controller's {what} from `{}`", path.display()));
    failure.causes.push(error.to_string());
    failure
}
