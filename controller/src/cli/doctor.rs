//! `edgefleet doctor`: looks at everything between this command and its controller, and says what to do.

use super::{
    client::{ApiClient, ClientError},
    context::Context,
    failure::Failure,
    table,
};
use crate::{
    api::views::{StatusView, TokenView, VersionView},
    clock,
    server::Addresses,
};
use clap::Args;
use edgefleet_shared::time::Timestamp;
use serde::Serialize;
use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

/// Clocks that differ by more make join codes and certificates look too old or too new.
const CLOCK_WARNS: Duration = Duration::from_secs(5);
const CLOCK_FAILS: Duration = Duration::from_secs(60);
/// A token that ends so soon wants a successor.
const TOKEN_WARNS: Duration = Duration::from_secs(7 * 86_400);
/// Space on the disk of the data folder.
const DISK_WARNS: u64 = 5 << 30;
const DISK_FAILS: u64 = 512 << 20;
const CONNECT: Duration = Duration::from_secs(5);

/// Check everything between this command and its controller, and say what to do.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  edgefleet doctor                        the controller in use
  edgefleet doctor --data ./fleet         on the controller's machine: secrets, disk and broker too

Exits with 1 if a check failed; warnings do not count.")]
pub struct DoctorArgs {}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Found {
    Ok,
    Warning,
    Failed,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Look {
    check: &'static str,
    found: Found,
    says: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Look {
    fn new(check: &'static str, found: Found, says: impl Into<String>) -> Self {
        Self { check, found, says: says.into(), hint: None }
    }
    fn ok(check: &'static str, says: impl Into<String>) -> Self {
        Self::new(check, Found::Ok, says)
    }
    fn failed(check: &'static str, failure: Failure) -> Self {
        let says = [vec![failure.message], failure.causes].concat().join(": ");
        Self { hint: failure.hint, ..Self::new(check, Found::Failed, says) }
    }
    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl DoctorArgs {
    /// # Errors
    /// [`Failure`] if a check failed.
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut looks = match context.client() {
            Ok(client) => remote(&client).await,
            Err(failure) => vec![Look::failed("controller", failure)],
        };
        if let Some(data) = context.data() {
            looks.extend(local(data).await);
        }
        context.print(&looks, |looks| {
            let mark = |found| match found {
                Found::Ok => "ok",
                Found::Warning => "warning",
                Found::Failed => "FAILED",
            };
            let says = |look: &Look| match &look.hint {
                Some(hint) => format!("{}\n{hint}", look.says),
                None => look.says.clone(),
            };
            let rows =
                looks.iter().map(|look| vec![look.check.to_owned(), mark(look.found).to_owned(), says(look)]);
            table::wrapped(&["CHECK", "", "WHAT WAS FOUND"], rows)
        })?;
        match looks.iter().filter(|look| look.found == Found::Failed).count() {
            0 => Ok(()),
            n => Err(Failure::new(format!("{n} of {} checks failed", looks.len()))),
        }
    }
}

async fn remote(client: &ApiClient) -> Vec<Look> {
    let answer = match client.stream("/healthz").await {
        Ok(answer) => answer,
        Err(error) => return vec![Look::failed("connection", error.into())],
    };
    let mut looks =
        vec![Look::ok("connection", format!("{} answers, and its certificate is the CA's", client.base()))];
    let date = answer.headers().get("date").and_then(|date| date.to_str().ok()).and_then(date);
    looks.push(clocks(clock::now(), date));
    looks.push(match client.get::<VersionView>("/api/v1/version").await {
        Ok(theirs) => versions(env!("CARGO_PKG_VERSION"), &theirs.version),
        Err(error) => Look::failed("version", error.into()),
    });
    looks.push(match client.get::<StatusView>("/readyz").await {
        Ok(_) => Look::ok("controller", "store, broker and signing keys work"),
        Err(ClientError::Problem(problem)) => Look::new("controller", Found::Failed, problem.detail.clone())
            .hint("its log names the reason: `not ready`"),
        Err(error) => Look::failed("controller", error.into()),
    });
    looks.push(match client.get::<TokenView>("/api/v1/whoami").await {
        Ok(me) => token(&me, clock::now()),
        Err(error) => Look::failed("token", error.into()),
    });
    looks
}

/// RFC 9110, `Date`.
fn date(text: &str) -> Option<Timestamp> {
    let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp().as_second();
    Some(Timestamp::from_secs(u64::try_from(at).ok()?))
}

fn clocks(ours: Timestamp, theirs: Option<Timestamp>) -> Look {
    let Some(theirs) = theirs else {
        return Look::new("clock", Found::Warning, "the controller does not say what time it is");
    };
    // Theirs is cut to the second.
    let apart = ours.since(theirs).max(theirs.since(ours));
    let says = format!("this machine's and the controller's differ by {} s", apart.as_secs());
    let found = match apart {
        apart if apart > CLOCK_FAILS => Found::Failed,
        apart if apart > CLOCK_WARNS => Found::Warning,
        _ => return Look::ok("clock", says),
    };
    Look::new("clock", found, says).hint("set both by NTP: `timedatectl set-ntp true`")
}

fn versions(ours: &str, theirs: &str) -> Look {
    if ours == theirs {
        return Look::ok("version", format!("both are {ours}"));
    }
    Look::new("version", Found::Warning, format!("this program is {ours}, the controller {theirs}"))
        .hint("use the program of the controller's version")
}

fn token(me: &TokenView, now: Timestamp) -> Look {
    let says = format!("`{}`, role {}", me.name, me.role);
    match me.expires {
        Some(ends) if ends.since(now) < TOKEN_WARNS => {
            Look::new("token", Found::Warning, format!("{says}, ends {ends}"))
                .hint("an administrator makes another: `edgefleet token create`")
        }
        _ => Look::ok("token", says),
    }
}

/// On the controller's own machine.
async fn local(data: &Path) -> Vec<Look> {
    let mut looks = vec![secrets(data)];
    looks.push(match fs4::available_space(data) {
        Ok(free) => disk(free),
        Err(error) => Look::failed("disk", error.into()),
    });
    if let Ok(addresses) = Addresses::read(data) {
        let connect = tokio::net::TcpStream::connect(&addresses.mqtt);
        looks.push(match tokio::time::timeout(CONNECT, connect).await {
            Ok(Ok(_)) => Look::ok("broker", format!("{} takes connections", addresses.mqtt)),
            Ok(Err(error)) => Look::new("broker", Found::Failed, format!("{}: {error}", addresses.mqtt))
                .hint("is the broker running, and is its port open in the firewall?"),
            Err(_) => Look::new("broker", Found::Failed, format!("{} does not answer", addresses.mqtt))
                .hint("is its port open in the firewall?"),
        });
    }
    looks
}

/// Nobody else may read what opens the fleet.
fn secrets(data: &Path) -> Look {
    let open = ["admin-token", "keys", "ca"].into_iter().filter(|name| {
        let mode = fs::metadata(data.join(name)).map(|found| found.permissions().mode());
        mode.is_ok_and(|mode| mode & 0o077 != 0) && !guarded(data)
    });
    let open: Vec<_> = open.map(|name| data.join(name).display().to_string()).collect();
    if open.is_empty() {
        return Look::ok("secrets", "only their owner can read them");
    }
    Look::new("secrets", Found::Failed, format!("others can read {}", open.join(", ")))
        .hint(format!("chmod -R go= {}", data.display()))
}

/// Whoever cannot enter the folder cannot read what is in it.
fn guarded(data: &Path) -> bool {
    fs::metadata(data).is_ok_and(|found| found.permissions().mode() & 0o077 == 0)
}

fn disk(free: u64) -> Look {
    let says = format!("{:.1} GiB are free", free as f64 / f64::from(1 << 30));
    let found = match free {
        0..DISK_FAILS => Found::Failed,
        DISK_FAILS..DISK_WARNS => Found::Warning,
        _ => return Look::ok("disk", says),
    };
    Look::new("disk", found, says)
        .hint("make room, or shorten how long telemetry is kept (`edgefleet monitor`)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_versions_and_disks_are_judged() {
        let now = Timestamp::from_secs(1_800_000_000);
        let at = |secs: u64| clocks(now, Some(now + Duration::from_secs(secs))).found;
        assert_eq!([at(0), at(5), at(30), at(600)], [Found::Ok, Found::Ok, Found::Warning, Found::Failed]);
        assert_eq!(clocks(now, None).found, Found::Warning);
        assert_eq!(date("Fri, 15 Jan 2027 08:00:00 GMT"), Some(now));
        assert_eq!(date("yesterday"), None);
        assert_eq!((versions("1", "1").found, versions("1", "2").found), (Found::Ok, Found::Warning));
        assert_eq!(
            [0, 1 << 30, 1 << 40].map(|free| disk(free).found),
            [Found::Failed, Found::Warning, Found::Ok]
        );
    }

    #[test]
    fn secrets_that_others_can_read_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let file = dir.path().join("admin-token");
        fs::write(&file, "x").unwrap();
        set(&file, 0o644);
        set(dir.path(), 0o755);
        assert_eq!(secrets(dir.path()).found, Found::Failed);
        set(dir.path(), 0o700);
        assert_eq!(secrets(dir.path()).found, Found::Ok);
    }
}
