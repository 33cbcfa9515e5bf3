//! `[[alerts.webhook]]` and `[[alerts.email]]` of the server's settings. Secrets are read from files at the start.

use super::channel::{Channel, ChannelName, Email, Secret, SmtpTls, Wants, Way, Webhook, kinds_of};
use crate::registry::toml_reader::Table;
use lettre::message::Mailbox;
use reqwest::Url;
use std::{collections::BTreeSet, fmt::Display, fs::File, io::Read, str::FromStr, time::Duration};

/// Channels of one controller; each has its own strand and its own queue.
const MAX_CHANNELS: usize = 16;
/// An HMAC key shorter than this can be guessed.
const MIN_SECRET: usize = 16;
/// Bytes of a secret or of a CA file.
const MAX_FILE: u64 = 64 * 1024;
const MAX_RECEIVERS: usize = 50;
/// A storm is one message in it, and nobody waits longer for what came second.
const USUAL_DIGEST: Duration = Duration::from_secs(5 * 60);
/// Alerts are given up after a day.
const LONGEST_DIGEST: Duration = Duration::from_secs(6 * 3_600);

/// Where alerts go.
#[derive(Clone, Debug, Default)]
pub struct AlertSettings {
    pub channels: Vec<Channel>,
}

impl AlertSettings {
    /// Reads `[alerts]`, noting every mistake in its reader.
    pub(crate) fn read(table: Table<'_>) -> Self {
        let mut channels = Vec::new();
        for one in table.tables("webhook") {
            channels.extend(webhook(&one));
            one.finish();
        }
        for one in table.tables("email") {
            channels.extend(email(&one));
            one.finish();
        }
        let mut names = BTreeSet::new();
        for channel in &channels {
            if !names.insert(&channel.name) {
                table.wrong(
                    "webhook",
                    format!("and `email` have two channels that are called `{}`", channel.name),
                );
            }
        }
        if channels.len() > MAX_CHANNELS {
            table.wrong(
                "webhook",
                format!("and `email` have {} channels, at most {MAX_CHANNELS} are possible", channels.len()),
            );
        }
        table.finish();
        Self { channels }
    }
}

fn webhook(table: &Table<'_>) -> Option<Channel> {
    let (name, wants, digest) = (table.need_parsed::<ChannelName>("name"), wants(table), digest(table));
    let url = table.need_parsed::<Url>("url").filter(|url| {
        let good = matches!(url.scheme(), "https" | "http") && url.host_str().is_some();
        if !good {
            table.wrong("url", "is neither https://... nor http://...");
        }
        good
    });
    let secret = file(table, "secret_file", true)?.trimmed();
    if secret.0.len() < MIN_SECRET {
        let found = secret.0.len();
        table.wrong("secret_file", format!("holds {found} bytes, a secret needs at least {MIN_SECRET}"));
        return None;
    }
    let ca = ca(table)?;
    Some(Channel {
        name: name?,
        wants: wants?,
        digest: digest?,
        way: Way::Webhook(Webhook { url: url?, secret: Secret::new(secret.0), ca }),
    })
}

fn email(table: &Table<'_>) -> Option<Channel> {
    let (name, wants, digest) = (table.need_parsed::<ChannelName>("name"), wants(table), digest(table));
    let host = table.need_string("host").map(str::to_owned);
    let port = table.integer("port", 1..=65_535).and_then(|port| u16::try_from(port).ok());
    let tls = table.need_parsed::<SmtpTls>("tls");
    let from = table.need_parsed::<Mailbox>("from");
    let mut to = Vec::new();
    for text in table.strings("to") {
        match text.parse::<Mailbox>() {
            Ok(mailbox) => to.push(mailbox),
            Err(error) => table.wrong("to", format!("has {text:?}: {error}")),
        }
    }
    if to.is_empty() || to.len() > MAX_RECEIVERS {
        table.wrong("to", format!("has {} addresses, not 1 to {MAX_RECEIVERS}", to.len()));
    }
    let (user, password) = (table.string("username"), file(table, "password_file", false)?);
    let login = match (user, password.0.is_empty()) {
        (None, true) => None,
        (Some(user), false) => Some((user.to_owned(), Secret::new(password.trimmed().0))),
        _ => {
            table.wrong("username", "and `password_file` come together");
            return None;
        }
    };
    if login.is_some() && tls == Some(SmtpTls::None) {
        table.wrong("tls", "is none: a password is not sent unencrypted");
    }
    let ca = ca(table)?;
    let way = Way::Email(Email { host: host?, port: port?, tls: tls?, login, from: from?, to, ca });
    Some(Channel { name: name?, wants: wants?, digest: digest?, way })
}

fn wants(table: &Table<'_>) -> Option<Wants> {
    let (min_severity, patterns) = (optional(table, "min_severity"), table.strings("kinds"));
    let (mut kinds, mut good) = (BTreeSet::new(), true);
    for pattern in patterns {
        match kinds_of(&pattern) {
            Ok(found) => kinds.extend(found),
            Err(error) => {
                table.wrong("kinds", format!("has {pattern:?}: {error}"));
                good = false;
            }
        }
    }
    good.then_some(Wants { kinds, min_severity: min_severity? })
}

fn digest(table: &Table<'_>) -> Option<Duration> {
    let found = optional::<humantime::Duration>(table, "digest")?.map_or(USUAL_DIGEST, Duration::from);
    if found > LONGEST_DIGEST {
        table.wrong("digest", format!("is longer than {} h", LONGEST_DIGEST.as_secs() / 3_600));
        return None;
    }
    Some(found)
}

/// `Some(None)` if it is absent, `None` if it is wrong.
pub(crate) fn optional<T: FromStr<Err: Display>>(table: &Table<'_>, key: &'static str) -> Option<Option<T>> {
    let Some(text) = table.string(key) else { return Some(None) };
    match text.parse() {
        Ok(value) => Some(Some(value)),
        Err(error) => {
            table.wrong(key, format!("is {text:?}: {error}"));
            None
        }
    }
}

/// A file's bytes.
pub(crate) struct Content(pub(crate) Vec<u8>);

impl Content {
    /// Without white space around it: editors end files with a line.
    pub(crate) fn trimmed(self) -> Self {
        Self(self.0.trim_ascii().to_owned())
    }
}

/// The content of the file that `key` names; empty if it is absent and may be.
pub(crate) fn file(table: &Table<'_>, key: &'static str, needed: bool) -> Option<Content> {
    let path = if needed { Some(table.need_string(key)?) } else { table.string(key) };
    let Some(path) = path else { return Some(Content(vec![])) };
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
    match read {
        Ok(n) if n as u64 > MAX_FILE => {
            table.wrong(key, format!("is {path:?}, which has more than {MAX_FILE} bytes"));
            None
        }
        Ok(_) => Some(Content(bytes)),
        Err(error) => {
            table.wrong(key, format!("is {path:?}, which cannot be read: {error}"));
            None
        }
    }
}

fn ca(table: &Table<'_>) -> Option<Option<Vec<u8>>> {
    let found = file(table, "ca_file", false)?.0;
    Some((!found.is_empty()).then_some(found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::toml_reader::Reader;
    use std::path::Path;

    fn read(text: &str) -> (AlertSettings, Vec<String>) {
        let reader = Reader::new(Path::new("f"), text);
        let document = reader.parse();
        let top = Table::top(&reader, &document);
        let settings = top.table("alerts").map(AlertSettings::read).unwrap_or_default();
        top.finish();
        let wrong = reader.into_mistakes().iter().map(|one| format!("{} {}", one.key, one.reason)).collect();
        (settings, wrong)
    }

    #[test]
    fn channels_are_read_with_their_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (secret, password) = (file("secret", "0123456789abcdef\n"), file("password", "hunter2\n"));
        let text = format!(
            "[[alerts.webhook]]\nname = \"ops\"\nurl = \"https://hooks.example.com/x\"\nsecret_file = {secret:?}\n\
             kinds = [\"rollout.*\", \"incident.opened\"]\nmin_severity = \"warning\"\n\
             [[alerts.email]]\nname = \"mail\"\nhost = \"mx\"\nport = 587\ntls = \"starttls\"\nusername = \"u\"\n\
             password_file = {password:?}\nfrom = \"Fleet <fleet@example.com>\"\nto = [\"a@example.com\"]\n"
        );
        let (settings, wrong) = read(&text);
        assert_eq!(wrong, Vec::<String>::new());
        let [ops, mail] = settings.channels.as_slice() else { panic!("{settings:?}") };
        assert_eq!(ops.wants.kinds.len(), 4);
        match (&ops.way, &mail.way) {
            (Way::Webhook(hook), Way::Email(mail)) => {
                assert_eq!(hook.secret.reveal(), b"0123456789abcdef");
                assert_eq!(mail.login.as_ref().unwrap().1.reveal(), b"hunter2");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_mistake_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let short = dir.path().join("short");
        std::fs::write(&short, "short").unwrap();
        for (text, expected) in [
            ("[[alerts.webhook]]\nname = \"O\"\nurl = \"ftp://x\"\nsecret_file = \"/nowhere/x\"\n", 3),
            (
                &*format!(
                    "[[alerts.webhook]]\nname = \"o\"\nurl = \"http://x\"\nsecret_file = {:?}\nsecrt = 1\n",
                    short.display().to_string()
                ),
                2,
            ),
            ("[[alerts.webhook]]\nname = \"o\"\nkinds = [\"x\"]\nmin_severity = \"loud\"\n", 4),
            ("[alerts]\nwebhooks = 1\n", 1),
            ("[[alerts.email]]\nname = \"m\"\n", 5),
            (
                "[[alerts.email]]\nname = \"m\"\nhost = \"h\"\nport = 25\ntls = \"none\"\nfrom = \"a@b.c\"\n\
                 to = [\"no address\"]\nusername = \"u\"\n",
                3,
            ),
        ] {
            let (settings, wrong) = read(text);
            assert_eq!((settings.channels.len(), wrong.len()), (0, expected), "{text}\n{wrong:#?}");
        }
    }
}
