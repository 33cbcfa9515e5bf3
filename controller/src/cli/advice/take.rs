//! `edgefleet advice take`: do what a piece of advice says.

use crate::advice::take::Doing;
use crate::{
    api::take::{TakeAnswer, TakeBody},
    cli::{client::ApiClient, context::Context, failure::Failure, model::replace, rollout::preview_text},
    registry::builder::{MANIFEST_FILE, RELEASE_FILE, blob_path},
    taking::{BundleFile, Outcome, TakenStep},
};
use clap::Args;
use edgefleet_shared::{
    bundle::{BlobRef, Manifest},
    digest::{BlobDigest, DigestHasher},
};
use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// Do what a piece of advice says: once; a second time it says what was done.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  edgefleet advice take adv-0123456789ab --dry-run            (what would happen, and nothing else)
  edgefleet advice take adv-0123456789ab --yes
  edgefleet advice take adv-0123456789ab --out digits-4       (a bundle: then `model sign` and `model push` it)")]
pub struct TakeArgs {
    id: String,
    /// Only say what would happen
    #[arg(long, conflicts_with = "out")]
    dry_run: bool,
    /// Agree to the number of devices of a rollout, needed above 10
    #[arg(long)]
    yes: bool,
    /// New folder for the bundle that it makes, ready to be signed
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl TakeArgs {
    /// # Errors
    /// [`Failure`].
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let path = format!("/api/v1/advice/{}", self.id);
        let body = TakeBody { dry_run: self.dry_run, confirmed: self.yes };
        let answer: TakeAnswer = client.post(&format!("{path}/take"), &body).await?;
        if let Some(out) = &self.out {
            let file: BundleFile = client.get(&format!("{path}/file")).await?;
            fetch(&client, &path, &file, out).await?;
            eprintln!("wrote {} to {}", file.bundle, out.display());
        }
        context.print(&answer, text)
    }
}

fn text(answer: &TakeAnswer) -> String {
    let TakeAnswer { outcome, advice, rule, bundle, what, by, at, .. } = answer;
    let head = match (outcome.as_str(), by, at) {
        ("taken", ..) => format!("{advice} ({rule} {bundle}) is taken."),
        ("already", Some(by), Some(at)) => {
            format!("{advice} ({rule} {bundle}) was taken by {by} at {at}; nothing was done now.")
        }
        _ => format!("{advice} ({rule} {bundle}) would come to this; nothing was done."),
    };
    let steps = answer.steps.iter().enumerate().map(|(at, step)| one(at + 1, step));
    let previews = answer.previews.iter().map(preview_text);
    let parts = std::iter::once(format!("{head}\n{what}")).chain(steps).chain(previews);
    parts.collect::<Vec<_>>().join("\n\n")
}

fn one(number: usize, taken: &TakenStep) -> String {
    let step = &taken.step;
    let word = match taken.outcome {
        Outcome::WouldBeDone => "would be done",
        Outcome::Done => "done",
        Outcome::ForPeople => "by hand",
    };
    let mut text = format!("{number}. [{word}] {}", step.text);
    if let Some(made) = &taken.made {
        text += &format!("\n   made {made}");
    }
    if let Doing::ByHand { what, lines } = &step.doing {
        text += &format!("\n   in {what}:");
        lines.iter().for_each(|line| text += &format!("\n     {line}"));
    }
    step.links.iter().for_each(|link| text += &format!("\n   page {link}"));
    step.commands.iter().for_each(|command| text += &format!("\n   {command}"));
    text
}

/// Writes the bundle folder as `model sign` and `model push` take it. A signature from before stays if it is the same
/// bundle.
async fn fetch(client: &ApiClient, path: &str, file: &BundleFile, out: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        let mut failure = Failure::new(format!("could not write `{}`", out.display()));
        failure.causes.push(error.to_string());
        failure
    };
    let place = out.join(MANIFEST_FILE);
    match fs::read(&place) {
        Ok(there) if there == file.manifest.as_bytes() => {}
        Ok(_) => {
            return Err(Failure::new(format!(
                "`{}` holds another bundle; it was left as it is",
                out.display()
            ))
            .hint("name a new folder"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let occupied = out.join(RELEASE_FILE).exists()
                || fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
            if occupied {
                return Err(Failure::new(format!("`{}` is not empty; it was left as it is", out.display()))
                    .hint("name a new folder"));
            }
        }
        Err(error) => return Err(failed(error)),
    }
    // The controller is trusted with much, but what a publisher signs is checked here: every blob by its digest.
    let manifest = Manifest::parse(file.manifest.as_bytes())
        .map_err(|_| Failure::new("the controller sent a manifest that cannot be used"))?;
    if manifest.name() != file.bundle {
        return Err(Failure::new(format!(
            "the controller calls {} by the name {}",
            manifest.name(),
            file.bundle
        )));
    }
    fs::create_dir_all(out.join("blobs").join("sha256")).map_err(failed)?;
    for blob in manifest.blobs() {
        fetch_blob(client, path, blob, &blob_path(out, &blob.digest)).await?;
    }
    // Last: a folder without it is no bundle.
    replace(&place, file.manifest.as_bytes())
}

async fn fetch_blob(client: &ApiClient, path: &str, blob: &BlobRef, to: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        let mut failure = Failure::new(format!("could not write `{}`", to.display()));
        failure.causes.push(error.to_string());
        failure
    };
    if fs::metadata(to).is_ok_and(|there| there.len() == blob.size) {
        return Ok(());
    }
    let mut response = client.stream(&format!("{path}/file?blob={}", blob.digest)).await?;
    let folder = to.parent().unwrap_or(Path::new("."));
    let mut temporary = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    let (mut hasher, mut size) = (DigestHasher::default(), 0u64);
    while let Some(chunk) = response.chunk().await.map_err(|error| {
        let mut failure = Failure::new(format!("blob {} was cut off", blob.digest));
        failure.causes = crate::cli::failure::sources(&error);
        failure
    })? {
        size = size.saturating_add(chunk.len() as u64);
        if size > blob.size {
            break;
        }
        hasher.update(&chunk);
        temporary.write_all(&chunk).map_err(failed)?;
    }
    let found = BlobDigest::from_bytes(hasher.finish());
    if found != blob.digest {
        return Err(Failure::new(format!("what the controller sent as {} is {found}", blob.digest)));
    }
    temporary.as_file().sync_all().map_err(failed)?;
    temporary.persist(to).map_err(|error| failed(error.error))?;
    Ok(())
}
