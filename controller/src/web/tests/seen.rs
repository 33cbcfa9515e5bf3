//! What pages show, how large they are, and that nothing from outside gets into them as markup.

use super::filled::{HOSTILE, House, device_id};
use reqwest::StatusCode;
use std::time::{Duration, Instant};

/// Largest page, bytes.
const MOST: usize = 150_000;
/// Longest time for a page; far above what is measured, for machines that do other things.
const SLOW: Duration = Duration::from_secs(5);
const VOID: [&str; 5] = ["meta", "link", "input", "br", "hr"];

/// Every element that is opened is closed, in order; nothing is inline.
fn check(path: &str, html: &str) {
    assert!(html.len() < MOST, "{path} has {} bytes", html.len());
    assert!(html.starts_with("<!DOCTYPE html><html lang=\"en\">"), "{path}");
    assert!(!html.contains(" style=") && !html.contains(" onclick") && !html.contains("<script>"), "{path}");
    assert!(!html.contains("NaN"), "{path}");
    let mut open = Vec::new();
    for part in html.split('<').skip(2) {
        let tag = part.split('>').next().unwrap();
        assert!(part.contains('>'), "{path}: {part}");
        let name = tag.split_whitespace().next().unwrap_or("");
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "{path}: </{name}>"),
            None if VOID.contains(&name) => {}
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "{path}: {open:?} stay open");
    assert_eq!(html.matches("<h1").count(), 1, "{path}");
    let mut ids: Vec<_> = html.split(" id=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    ids.sort_unstable();
    let all = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), all, "{path}: an id is given twice");
    for label in html.split("<label for=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(ids.binary_search(&label).is_ok(), "{path}: label for {label}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_show_what_there_is_and_nothing_hostile() {
    let house = House::with(120).await;
    let person = house.person("admin").await;
    let findings = house.get("/findings", Some(&person.cookie)).await.text().await.unwrap();
    let link = |prefix: &str| {
        let rest = findings
            .split(&format!("href=\"{prefix}"))
            .nth(1)
            .unwrap_or_else(|| panic!("{prefix}: {findings}"));
        format!("{prefix}{}", rest.split('"').next().unwrap())
    };
    let device = format!("/devices/{}", device_id(0));
    let pages: Vec<(String, Vec<&str>)> = vec![
        (
            "/findings".into(),
            vec!["digits@2: inputs or answers in site=lyon have moved", "0.41", "Label captures", "A03"],
        ),
        ("/findings?state=all".into(), vec!["Open and resolved"]),
        (link("/incidents/"), vec!["input/image/contrast", "a whole cohort", "Deviations"]),
        (link("/advice/"), vec!["What to do", "Numbers", "Useful", "Not useful"]),
        ("/models".into(), vec!["digits", "digits@2"]),
        (
            "/models/digits".into(),
            vec![
                "digits@2 in site=lyon, estimated",
                "digits@2, audited",
                "30 labels",
                "70.0 %",
                "Latency in the agent",
                "shifted",
            ],
        ),
        ("/models/digits?cohort=site%3Dlyon&back=week".into(), vec!["site=lyon"]),
        ("/fleet".into(), vec!["press-7-camera", "Next page", "enrolled"]),
        ("/fleet?selector=site%3Dberlin".into(), vec!["press-1-camera"]),
        ("/fleet?selector=site%3D%3D%3D".into(), vec!["role=\"alert\""]),
        (device, vec!["Certificates", "It has not reported yet", "site=lyon"]),
        ("/rollouts".into(), vec!["digits@2 to slot digits"]),
        (
            "/rollouts/r-0mibjsxda-1f21".into(),
            vec!["Stages", "canary", "1204 of 267", "p95 is 41.0 ms", "What was decided"],
        ),
        ("/".into(), vec!["Rollouts under way", "What drifts", "What to do"]),
        ("/audit".into(), vec!["token.create", "before and after"]),
        ("/settings".into(), vec!["How devices behave", "Five minutes are kept"]),
        ("/invites".into(), vec!["New invite", "Make a join code"]),
        ("/tokens".into(), vec!["usable", "Revoke for good"]),
        ("/sign-in".into(), vec!["API token"]),
    ];
    for (path, words) in pages {
        let begun = Instant::now();
        let response = house.get(&path, Some(&person.cookie)).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        let policy = header("content-security-policy");
        for part in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "frame-ancestors 'none'",
            "form-action 'self'",
        ] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!((header("cache-control"), header("x-frame-options")), ("no-store".into(), "DENY".into()));
        assert_eq!(header("x-content-type-options"), "nosniff");
        let html = response.text().await.unwrap();
        assert!(begun.elapsed() < SLOW, "{path} took {:?}", begun.elapsed());
        check(&path, &html);
        for word in words {
            assert!(html.contains(word), "{path} does not say {word:?}: {html}");
        }
        assert!(!html.contains(HOSTILE) && !html.contains("<script>alert"), "{path}");
        assert!(!html.contains(&house.admin), "{path}");
    }
    // What a selector does not select is not shown.
    let berlin = house.get("/fleet?selector=site%3Dberlin", Some(&person.cookie)).await.text().await.unwrap();
    assert!(!berlin.contains("press-2-camera"));
    for (path, status) in [
        ("/advice/adv-none", 404),
        ("/models/none", 404),
        ("/devices/dev-none", 404),
        ("/rollouts/r-none", 404),
        ("/models/%3Cb%3E", 400),
    ] {
        let response = house.get(path, Some(&person.cookie)).await;
        assert_eq!(response.status(), status, "{path}");
        check(path, &response.text().await.unwrap());
    }
    for path in ["/assets/app.js", "/assets/style.css"] {
        let response = house.get(path, None).await;
        assert_eq!(
            (response.status(), response.headers()["cache-control"].to_str().unwrap().contains("immutable")),
            (StatusCode::OK, true)
        );
        assert!(response.text().await.unwrap().len() < 40_000);
    }
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_people_say_on_a_page_is_what_the_api_then_says() {
    let house = House::with(3).await;
    let person = house.person("operator").await;
    let api = |path: String| {
        let request = house.client.get(format!("{}{path}", house.url)).bearer_auth(&house.admin);
        async move { request.send().await.unwrap().json::<serde_json::Value>().await.unwrap() }
    };
    let advice = api("/api/v1/advice".into()).await;
    let id = advice[0]["id"].as_str().unwrap().to_owned();
    let said = format!("csrf={}&useful=yes&note=it+was+%3Cdirt%3E", person.csrf);
    let marked = house.post(&format!("/advice/{id}/mark"), &person.cookie, said).await;
    assert_eq!(marked.status(), StatusCode::SEE_OTHER);
    let mark = api(format!("/api/v1/advice/{id}")).await["mark"].clone();
    assert_eq!((&mark["useful"], &mark["note"]), (&true.into(), &"it was <dirt>".into()));
    let page = house.get(&format!("/advice/{id}"), Some(&person.cookie)).await.text().await.unwrap();
    assert!(page.contains("it was &lt;dirt&gt;"));

    // The sample that failed is paused: it may be reverted, with a reason, and after being asked twice.
    let orders = "/rollouts/r-0mibjsxda-1f21/orders";
    let order = |body: &str| format!("csrf={}&{body}", person.csrf);
    for body in ["order=revert&reason=bad", "order=revert&sure=yes", "order=resume", "order=dance&reason=x"] {
        let answer = house.post(orders, &person.cookie, order(body)).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{body}");
    }
    let reverted = house.post(orders, &person.cookie, order("order=revert&sure=yes&reason=it+is+slow")).await;
    assert_eq!(reverted.status(), StatusCode::SEE_OTHER, "{}", reverted.text().await.unwrap());
    // A join code is shown once, to who made it.
    let made = house.post("/invites", &person.cookie, order("labels=site%3Dlyon&uses=3&hours=2")).await;
    let page = made.text().await.unwrap();
    assert!(page.contains("edgefleet-agent enroll ef1-"), "{page}");
    let again = house.get("/invites", Some(&person.cookie)).await.text().await.unwrap();
    assert!(again.contains("0 of 3") && !again.contains("ef1-"));
    let state = api("/api/v1/rollouts/r-0mibjsxda-1f21".into()).await["state"].clone();
    assert!(state == "reverting" || state == "reverted", "{state}");
    let audit = api("/api/v1/audit".into()).await.to_string();
    assert!(audit.contains("rollout.abort") && audit.contains("advice.mark"), "{audit}");
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn advice_is_taken_after_a_look_at_what_it_does() {
    let house = House::with(3).await;
    let (admin, operator) = (house.person("admin").await, house.person("operator").await);
    let api = async |path: &str| {
        let request = house.client.get(format!("{}{path}", house.url)).bearer_auth(&house.admin);
        request.send().await.unwrap().json::<serde_json::Value>().await.unwrap()
    };
    let advice = api("/api/v1/advice").await;
    let (mut rules, mut needing, mut taken) = (0, 0, 0);
    for one in advice.as_array().unwrap() {
        let id = one["id"].as_str().unwrap();
        let (about, path) = (format!("/advice/{id}"), format!("/advice/{id}/take"));
        let page = house.get(&about, Some(&admin.cookie)).await.text().await.unwrap();
        assert!(page.contains("Take it…") && page.contains(&path), "{page}");
        let look = house.get(&path, Some(&operator.cookie)).await;
        let status = look.status();
        let look = look.text().await.unwrap();
        check(&path, &look);
        if status != StatusCode::OK {
            // What it would roll out was never pushed here.
            assert!(status == StatusCode::NOT_FOUND && look.contains("there is no bundle"), "{look}");
            continue;
        }
        assert!(look.contains("What would be done"), "{look}");
        if look.contains("which needs a publisher") {
            needing += 1;
            let refused =
                house.post(&path, &operator.cookie, format!("csrf={}&confirmed=yes", operator.csrf)).await;
            assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        }
        let form = format!("csrf={}&confirmed=yes", admin.csrf);
        let answer = house.post(&path, &admin.cookie, form).await;
        if answer.status() != StatusCode::SEE_OTHER {
            let status = answer.status();
            assert!(status.is_client_error(), "{status} {}", answer.text().await.unwrap());
            continue;
        }
        taken += 1;
        rules += usize::from(look.contains("<dt>Rule</dt>"));
        let done = house.get(&path, Some(&admin.cookie)).await.text().await.unwrap();
        check(&path, &done);
        assert!(done.contains("What was done") && !done.contains("Do it"), "{done}");
        let page = house.get(&about, Some(&admin.cookie)).await.text().await.unwrap();
        assert!(page.contains("what was done") && !page.contains("Take it…"), "{page}");
    }
    assert!(rules > 0 && taken > 5, "{rules} rules, {needing} need a publisher, {taken} taken");
    assert_eq!(api("/api/v1/settings").await.as_array().unwrap().len(), rules);
    let odd = house.post("/advice/adv-none/take", &admin.cookie, format!("csrf={}&confirmed=so", admin.csrf));
    assert_eq!(odd.await.status(), StatusCode::BAD_REQUEST);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_told_to_who_looks_and_again_to_who_comes_back() {
    let house = House::with(3).await;
    let person = house.person("operator").await;
    let listen = async |last: Option<&str>| {
        let mut request = house.client.get(format!("{}/events", house.url)).header("cookie", &person.cookie);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        request.send().await.unwrap()
    };
    let read = async |stream: &mut reqwest::Response, word: &str| {
        let mut text = String::new();
        while !text.contains(word) {
            let chunk = tokio::time::timeout(Duration::from_secs(20), stream.chunk()).await;
            text.push_str(&String::from_utf8_lossy(&chunk.expect(word).unwrap().expect(word)));
        }
        text
    };
    let mut stream = listen(None).await;
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let begin = read(&mut stream, "\n\n").await;
    assert!(
        begin.contains("retry:") && begin.contains("event: begin") && begin.contains("data: new"),
        "{begin}"
    );
    let body = format!("csrf={}&labels=&uses=3&hours=2", person.csrf);
    assert_eq!(house.post("/invites", &person.cookie, body).await.status(), StatusCode::OK);
    let told = read(&mut stream, "invite").await;
    let number: u64 = told.split("id: ").last().unwrap().lines().next().unwrap().parse().unwrap();
    // Who saw everything but the last one gets that; who names one that never was is told to look at everything.
    let again = read(&mut listen(Some(&(number - 1).to_string())).await, "invite").await;
    assert!(again.contains("data: new") && again.contains(&format!("id: {number}")), "{again}");
    let lost = read(&mut listen(Some("999999")).await, "data:").await;
    assert!(lost.contains("data: all"), "{lost}");
    assert_eq!(house.get("/events", None).await.status(), StatusCode::SEE_OTHER);
    // The controller does not wait for who listens.
    let begun = Instant::now();
    house.stop().await;
    assert!(begun.elapsed() < SLOW, "{:?}", begun.elapsed());
}

/// What the goal is for 10,000 devices: 150 KB and 200 ms a page. Unoptimised and beside others it takes longer than
/// that, so the limit here only finds what grows with the fleet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_do_not_grow_with_the_fleet() {
    let house = House::with(10_000).await;
    let person = house.person("viewer").await;
    let last = format!("/fleet?cursor={}", crate::api::extract::cursor(device_id(9_900).as_str()));
    for path in [
        "/",
        "/fleet",
        last.as_str(),
        "/fleet?selector=site%3Dlyon,id%3Ddev-09998",
        "/models",
        "/models/digits",
        "/findings",
    ] {
        let begun = Instant::now();
        let html = house.get(path, Some(&person.cookie)).await.text().await.unwrap();
        println!("{path}: {} bytes, {:?}", html.len(), begun.elapsed());
        assert!(begun.elapsed() < SLOW, "{path} took {:?}", begun.elapsed());
        check(path, &html);
    }
    let first = house.get("/fleet", Some(&person.cookie)).await.text().await.unwrap();
    assert!(first.contains("9,800") && first.matches("<tr>").count() == 51, "{first}");
    house.stop().await;
}
