//! The pages in a real browser: the script runs under the policy, and pictures for people to
//! look at, light and dark, on a phone and on a desk.

use super::filled::{House, Person, device_id};
use axum::{Router, body::Body, extract::Request, response::Response, routing::any};
use reqwest::Client;
use std::{path::PathBuf, process::Stdio, time::Duration};
use tokio::{net::TcpListener, process::Command};

const LIMIT: Duration = Duration::from_secs(90);

/// The controller over plain HTTP on this machine, for a browser that knows neither the authority nor the session.
async fn bridge(house: &House, person: &Person) -> String {
    let (client, url, cookie) = (house.client.clone(), house.url.clone(), person.cookie.clone());
    let pass = move |request: Request| pass(client.clone(), url.clone(), cookie.clone(), request);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(any(pass));
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

async fn pass(client: Client, url: String, cookie: String, request: Request) -> Response {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    // The stream does not end, and virtual time would wait for it. This answer says: do not come again.
    if path == "/events" {
        return Response::builder().status(204).body(Body::empty()).unwrap();
    }
    let answer = client.get(format!("{url}{path}")).header("cookie", cookie).send().await.unwrap();
    let mut response = Response::builder().status(answer.status());
    for (name, value) in answer.headers() {
        // Plain HTTP is what this is for.
        if name != "strict-transport-security" && name != "transfer-encoding" {
            response = response.header(name, value);
        }
    }
    response.body(Body::from_stream(answer.bytes_stream())).unwrap()
}

/// Runs the browser and returns its standard output.
async fn chromium(args: &[String]) -> String {
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new("chromium");
    command
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
        .args(["--no-first-run", "--disable-background-networking", "--proxy-server=direct://"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output()).await.expect("chromium took too long");
    let output = output.expect("chromium is missing; `make setup` installs it");
    assert!(output.status.success(), "chromium ended with {}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_runs_the_script_under_the_policy_and_paints_every_page() {
    let house = House::with(120).await;
    let person = house.person("admin").await;
    let at = bridge(&house, &person).await;
    let seen =
        chromium(&["--dump-dom".into(), "--virtual-time-budget=4000".into(), format!("{at}/findings")]).await;
    let button =
        seen.split("id=\"theme\"").nth(1).and_then(|rest| rest.split("</button>").next()).unwrap_or("");
    assert!(!button.is_empty() && !button.contains("hidden"), "the script did not run: {button}");
    assert!(button.ends_with("Dark") || button.ends_with("Light"), "{button}");

    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/dashboard");
    std::fs::create_dir_all(&folder).unwrap();
    let device = format!("/devices/{}", device_id(2));
    let pages = [
        ("overview", "/"),
        ("findings", "/findings"),
        ("model", "/models/digits"),
        ("fleet", "/fleet"),
        ("device", device.as_str()),
        ("rollout", "/rollouts/r-0mibjsxda-1f21"),
        ("invites", "/invites"),
        ("audit", "/audit"),
    ];
    for (name, path) in pages {
        for (width, height, is_dark) in [(390, 1_800, false), (1_440, 1_400, true)] {
            let file = folder.join(format!("{name}-{width}.png"));
            let _ = std::fs::remove_file(&file);
            let scheme = if is_dark { 0 } else { 1 };
            chromium(&[
                format!("--blink-settings=preferredColorScheme={scheme}"),
                format!("--window-size={width},{height}"),
                "--virtual-time-budget=2000".into(),
                format!("--screenshot={}", file.display()),
                format!("{at}{path}"),
            ])
            .await;
            let size = std::fs::metadata(&file).map(|file| file.len()).unwrap_or_default();
            assert!(size > 20_000, "{} has {size} bytes: nothing was painted", file.display());
        }
    }
    house.stop().await;
}
