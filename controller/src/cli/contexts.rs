//! Controllers a person knows: `edgefleet login` writes them down, every command reads them.
//!
//! One TOML file that only its owner can read, for it holds tokens.

use super::{context::Context, failure::Failure, table};
use crate::api::views::TokenView;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// Names another file than the usual one.
const FILE: &str = "EDGEFLEET_CONTEXTS";
/// Largest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Contexts {
    /// Taken where no other is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) current: Option<String>,
    #[serde(default)]
    pub(super) contexts: BTreeMap<String, Known>,
}

/// One controller, and who one is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Known {
    pub(super) server: String,
    pub(super) token: String,
    /// PEM of the only authority that is believed.
    pub(super) ca: String,
}

impl Contexts {
    /// The named one, else the current one; `None`: there is no current one.
    pub(super) fn choose(&self, name: Option<&str>) -> Result<Option<&Known>, Failure> {
        let Some(name) = name.or(self.current.as_deref()) else { return Ok(None) };
        self.contexts.get(name).map(Some).ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &str) -> Failure {
        let known: Vec<_> = self.contexts.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none is known".to_owned() } else { known.join(", ") };
        Failure::usage(format!("there is no context `{name}`"))
            .hint(format!("known: {known}; `edgefleet login URL --name {name}` makes it"))
    }

    /// # Errors
    /// [`Failure`] if the file is there and cannot be used.
    pub(super) fn read() -> Result<Self, Failure> {
        path().map_or_else(|| Ok(Self::default()), |path| Self::read_from(&path))
    }

    fn read_from(path: &Path) -> Result<Self, Failure> {
        let wrong = |error: &dyn std::fmt::Display| {
            let mut failure = Failure::new(format!("could not read the contexts in `{}`", path.display()));
            failure.causes.push(error.to_string());
            failure.hint("mend the file, or remove it and use `edgefleet login` again")
        };
        let mut text = String::new();
        match fs::File::open(path) {
            Ok(file) => {
                use io::Read as _;
                file.take(MAX_BYTES).read_to_string(&mut text).map_err(|e| wrong(&e))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(wrong(&error)),
        }
        toml::from_str(&text).map_err(|e| wrong(&e))
    }

    fn write(&self) -> Result<PathBuf, Failure> {
        let path = path().ok_or_else(|| {
            Failure::new("no place for the contexts is known").hint(format!("set HOME or {FILE}"))
        })?;
        self.write_to(&path)?;
        Ok(path)
    }

    /// Whole or not at all, and never readable for others.
    fn write_to(&self, path: &Path) -> Result<(), Failure> {
        let failed = |error: io::Error| {
            let mut failure = Failure::new(format!("could not write the contexts to `{}`", path.display()));
            failure.causes.push(error.to_string());
            failure
        };
        let text = toml::to_string_pretty(self)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        fs::create_dir_all(folder.unwrap_or(Path::new("."))).map_err(failed)?;
        let fresh = path.with_extension(format!("new-{}", std::process::id()));
        let written = (|| {
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&fresh, path)
        })();
        written.map_err(|error| {
            let _ = fs::remove_file(&fresh);
            failed(error)
        })
    }
}

fn path() -> Option<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || named("XDG_CONFIG_HOME").or_else(|| named("HOME").map(|home| home.join(".config")));
    named(FILE).or_else(|| home().map(|home| home.join("edgefleet").join("contexts.toml")))
}

/// Remember a controller and a token for it, so that commands need no flags. Asks the controller first.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  edgefleet login https://controller:8443 --ca ca.pem                 (asks for the token)
  edgefleet login https://plant-7:8443 --ca ca.pem --name plant-7 < token
  edgefleet login --data ./fleet                                      (on the controller's machine)

What is remembered lies in contexts.toml below ~/.config/edgefleet (EDGEFLEET_CONTEXTS names another file), readable for
you alone. Flags and EDGEFLEET_* variables go before it.")]
pub struct LoginArgs {
    /// The controller, for example https://controller:8443
    url: Option<String>,
    /// What to call it [default: the controller's host]
    #[arg(long)]
    name: Option<String>,
}

impl LoginArgs {
    /// # Errors
    /// [`Failure`]; nothing is remembered then.
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut known = context.named(self.url.as_deref())?;
        if known.token.is_empty() {
            known.token = asked("Token: ")?;
        }
        let client = known.client()?;
        let me: TokenView = client.get("/api/v1/whoami").await?;
        let host = reqwest::Url::parse(&known.server)?.host_str().unwrap_or("controller").to_owned();
        let name = self.name.unwrap_or(host);
        fits(&name)?;
        let mut all = Contexts::read()?;
        all.current = Some(name.clone());
        all.contexts.insert(name.clone(), known);
        let path = all.write()?;
        context.print(&me, |me| {
            format!(
                "{name}: {} as `{}` ({}), remembered in {}",
                client.base(),
                me.name,
                me.role,
                path.display()
            )
        })
    }
}

fn fits(name: &str) -> Result<(), Failure> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match !name.is_empty() && name.len() <= 64 && name.chars().all(good) {
        true => Ok(()),
        false => Err(Failure::usage("a context's name has 1 to 64 letters, digits, `-`, `_` and `.`")),
    }
}

/// A line of standard input.
fn asked(prompt: &str) -> Result<String, Failure> {
    if io::stdin().is_terminal() {
        eprint!("{prompt}");
    }
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    match line.trim() {
        "" => Err(Failure::usage("no token was given").hint("enter it, or use --token or EDGEFLEET_TOKEN")),
        token => Ok(token.to_owned()),
    }
}

#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// List them; `*` marks the one in use
    List,
    /// Take another one from now on
    Use { name: String },
    /// Forget one, with its token
    Remove { name: String },
}

/// A context as it is shown: without its token.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    server: &'a str,
    current: bool,
}

impl ContextCommand {
    /// # Errors
    /// [`Failure`].
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let mut all = Contexts::read()?;
        match self {
            Self::List => {}
            Self::Use { name } => {
                all.choose(Some(&name))?;
                all.current = Some(name);
                all.write()?;
            }
            Self::Remove { name } => {
                all.contexts.remove(&name).ok_or_else(|| all.unknown(&name))?;
                all.current = all.current.filter(|current| *current != name);
                all.write()?;
            }
        }
        let shown: Vec<_> = all
            .contexts
            .iter()
            .map(|(name, known)| Shown {
                name,
                server: &known.server,
                current: all.current.as_ref() == Some(name),
            })
            .collect();
        context.print(&shown, |shown| {
            if shown.is_empty() {
                return "no contexts; `edgefleet login URL --ca FILE` makes one".to_owned();
            }
            let mark = |one: &Shown<'_>| if one.current { "*" } else { "" }.to_owned();
            let rows = shown.iter().map(|one| vec![mark(one), one.name.to_owned(), one.server.to_owned()]);
            table::of(&["", "NAME", "SERVER"], rows)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(server: &str) -> Known {
        Known { server: server.into(), token: "eft_secret".into(), ca: "-----BEGIN\nx\n".into() }
    }

    #[test]
    fn contexts_are_kept_whole_and_for_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/contexts.toml");
        assert_eq!(Contexts::read_from(&path).unwrap(), Contexts::default());
        let mut all = Contexts { current: Some("b".into()), ..Contexts::default() };
        all.contexts.insert("a".into(), known("https://a:1"));
        all.contexts.insert("b".into(), known("https://b:1"));
        all.write_to(&path).unwrap();
        all.write_to(&path).unwrap();
        assert_eq!(Contexts::read_from(&path).unwrap(), all);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
        assert_eq!(all.choose(None).unwrap(), Some(&known("https://b:1")));
        assert_eq!(all.choose(Some("a")).unwrap(), Some(&known("https://a:1")));
        let unknown = all.choose(Some("c")).unwrap_err();
        assert!(unknown.usage && unknown.hint.unwrap().contains("a, b"));
        fs::write(&path, "contexts = 7").unwrap();
        assert!(Contexts::read_from(&path).unwrap_err().to_string().contains("contexts.toml"));
    }

    #[test]
    fn names_are_words() {
        assert!(fits("plant-7.lan").is_ok());
        assert!(fits("").is_err() && fits("a b").is_err() && fits(&"x".repeat(65)).is_err());
    }
}
