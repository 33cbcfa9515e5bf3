//! The command line on a person's own machine: who one is where, what a terminal and a manual want, what is wrong.

use anyhow::{Context, Result, ensure};
use edgefleet_tests::{
    binaries,
    cli::{self, Done},
    controller::Controller,
    place::Place,
};
use std::{ffi::OsStr, fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

/// A person with a home and no flags.
struct Person {
    home: PathBuf,
}

impl Person {
    async fn types(&self, args: &[&str]) -> Result<Done> {
        let file = self.home.join("contexts.toml");
        let env = [("HOME", self.home.as_os_str()), ("EDGEFLEET_CONTEXTS", file.as_os_str())];
        cli::run(&binaries::edgefleet()?, args, &env).await
    }
}

#[tokio::test]
async fn a_login_is_remembered_and_belongs_to_its_owner_alone() -> Result<()> {
    let place = Place::new()?;
    let controller = Controller::start(&place).await?;
    let person = Person { home: place.join("home") };
    fs::create_dir(&person.home)?;
    let ca = controller.data.join("ca/ca.pem").to_string_lossy().into_owned();
    let url = format!("https://{}", controller.https);

    let stranger = person.types(&["device", "list"]).await?;
    ensure!(stranger.code == Some(2) && stranger.err.contains("edgefleet login"), "{stranger:?}");
    let made = controller.run(&["token", "create", "bo", "--role", "viewer"]).await?;
    let token = made["text"].as_str().context("no token")?;
    let login = ["login", &url, "--ca", &ca, "--name", "plant-7", "--token"];
    person.types(&[&login[..], &["eft_wrong_token"]].concat()).await?.refused(&["token"])?;
    ensure!(!person.home.join("contexts.toml").exists(), "a refused login is remembered");
    let entered = person.types(&[&login[..], &[token]].concat()).await?.ok()?;
    ensure!(entered.out.contains("plant-7") && !entered.out.contains(token), "{entered:?}");
    let mode = fs::metadata(person.home.join("contexts.toml"))?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "{mode:o}");

    let devices = person.types(&["device", "list", "--output", "json"]).await?.ok()?;
    ensure!(devices.json()?["items"].is_array() || devices.json()?.is_array(), "{devices:?}");
    let yaml = person.types(&["context", "list", "--output", "yaml"]).await?.ok()?.out;
    ensure!(yaml.contains("name: plant-7") && yaml.contains("current: true"), "{yaml}");
    ensure!(!yaml.contains(token), "{yaml}");
    let unknown = person.types(&["device", "list", "--context", "plant-8"]).await?;
    ensure!(unknown.code == Some(2) && unknown.err.contains("known: plant-7"), "{unknown:?}");
    // A token for one controller is not sent to another one that is named.
    let elsewhere = person.types(&["device", "list", "--server", &url, "--ca", &ca]).await?;
    ensure!(elsewhere.code == Some(2) && elsewhere.err.contains("no token"), "{elsewhere:?}");

    let doctor = person.types(&["doctor", "--output", "json"]).await?.ok()?.json()?;
    let found = |check: &str| doctor.as_array()?.iter().find(|one| one["check"] == check)?["found"].as_str();
    for check in ["connection", "clock", "version", "controller", "token"] {
        ensure!(found(check) == Some("ok"), "{check}: {doctor}");
    }
    let local = controller.run(&["doctor"]).await?;
    for check in ["secrets", "broker"] {
        let one = local.as_array().and_then(|all| all.iter().find(|one| one["check"] == check));
        ensure!(one.is_some_and(|one| one["found"] == "ok"), "{check}: {local}");
    }

    person.types(&["context", "remove", "plant-7"]).await?.ok()?;
    let text = fs::read_to_string(person.home.join("contexts.toml"))?;
    ensure!(!text.contains(token), "{text}");
    drop(controller);
    let gone = person.types(&[&login[..], &[token]].concat()).await?;
    gone.refused(&["hint"])?;
    place.end()
}

#[tokio::test]
async fn shells_and_manuals_get_what_they_want() -> Result<()> {
    let place = Place::new()?;
    let person = Person { home: place.path().to_owned() };
    for (shell, word) in
        [("bash", "complete -F"), ("zsh", "#compdef edgefleet"), ("fish", "complete -c edgefleet")]
    {
        let text = person.types(&["completions", shell]).await?.ok()?.out;
        ensure!(text.contains(word) && text.contains("rollout"), "{shell}");
    }
    // bash itself reads it and completes a verb.
    let script = place.join("completions.bash");
    fs::write(&script, person.types(&["completions", "bash"]).await?.out)?;
    let ask = format!(
        "source {}; COMP_WORDS=(edgefleet context re); COMP_CWORD=2; _edgefleet edgefleet re context; echo ${{COMPREPLY[@]}}",
        script.display()
    );
    let none: [(&str, &OsStr); 0] = [];
    let answer = cli::run("bash".as_ref(), ["-c", &ask], &none).await?.ok()?;
    ensure!(answer.out.trim() == "remove", "{answer:?}");
    let pages = place.join("man1");
    person.types(&["man", &pages.to_string_lossy()]).await?.ok()?;
    for (page, words) in
        [("edgefleet.1", ["rollout", "controller"]), ("edgefleet-settings-set.1", ["window_secs", "EXTRA"])]
    {
        let text = fs::read_to_string(pages.join(page)).with_context(|| page.to_owned())?;
        ensure!(words.iter().all(|word| text.contains(word)), "{page}: {text}");
    }
    place.end()
}
