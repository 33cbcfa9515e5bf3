use super::*;
use crate::config;
use std::io::Write;

fn load(text: &str) -> Result<Vec<Binding>, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let path = file.path().display().to_string();
    config::load(Some(file.path()), [], []).map(|config| config.bindings).map_err(|wrong| {
        let text: Vec<_> = wrong.iter().map(|e| e.to_string().replace(&path, "FILE")).collect();
        text.join("\n")
    })
}

#[test]
fn a_binding_is_read_with_its_defaults_and_a_sink_shares_the_broker_of_its_source() {
    let bindings = load(
        "data = \"/x\"\n\
         [[bindings]]\nname = \"door\"\nslot = \"faces\"\nbody = \"bytes\"\nanswer = \"outputs\"\nrate = 2.5\nqueue = 3\n\
         on_error = \"drop\"\n\
         source = { kind = \"mqtt\", port = 1884, topic = \"cam/+/jpeg\", qos = 1, username = \"edge\" }\n\
         sink = { kind = \"mqtt\", topic = \"answers/{device}/{slot}\", retain = true }\n\
         [[bindings]]\nname = \"inbox\"\nslot = \"digits\"\n\
         [bindings.source]\nkind = \"directory\"\npath = \"/in\"\nevery = \"250ms\"\n\
         [bindings.sink]\nkind = \"file\"\npath = \"/out/answers.jsonl\"\n\
         [[bindings]]\nname = \"again\"\nslot = \"digits\"\n\
         source = { kind = \"replay\", file = \"/r.jsonl\", speed = 4 }\nsink = { kind = \"none\" }\n",
    )
    .unwrap();
    let broker = Broker {
        host: "127.0.0.1".into(),
        port: 1884,
        username: Some("edge".into()),
        password_file: None,
        allow_plaintext: false,
    };
    let filter = "cam/+/jpeg".to_owned();
    let topic = "answers/{device}/{slot}".to_owned();
    let door = Binding {
        name: "door".into(),
        slot: "faces".parse().unwrap(),
        body: BodyKind::Bytes,
        answer: Form::Compact,
        tells_errors: false,
        queue: 3,
        between: Some(Duration::from_millis(400)),
        source: Source::Mqtt { broker: broker.clone(), filter, qos: Qos::AtLeastOnce },
        sink: Sink::Mqtt { broker, topic, qos: Qos::AtLeastOnce, retain: true },
    };
    assert_eq!(bindings[0], door);
    let every = Duration::from_millis(250);
    let source = Source::Directory { path: "/in".into(), every, after: After::Move, keep: 1_000 };
    assert_eq!((&bindings[1].source, bindings[1].tells_errors, bindings[1].queue), (&source, true, 8));
    let sink = Sink::File { path: "/out/answers.jsonl".into(), rotate_bytes: 16 << 20, keep: 4 };
    assert_eq!((&bindings[1].sink, bindings[1].body), (&sink, BodyKind::Json));
    assert_eq!(bindings[2].source.to_string(), "replay /r.jsonl");
    assert_eq!(load("").unwrap(), vec![]);
}

#[test]
fn every_mistake_is_named_with_its_line_at_once() {
    let wrong = load(
        "[[bindings]]\n\
         name = \"Door 1\"\n\
         slott = \"x\"\n\
         body = \"jpeg\"\n\
         rate = 0\n\
         queue = [1]\n\
         [bindings.source]\n\
         kind = \"mqtt\"\n\
         host = \"8.8.8.8\"\n\
         topic = \"a/#/b\"\n\
         qos = 2\n\
         password_file = \"secret\"\n\
         [bindings.sink]\n\
         kind = \"mqtt\"\n\
         topic = \"a/{host}\"\n\
         [[bindings]]\n\
         name = \"b\"\n\
         slot = \"s\"\n\
         queue = 4\n\
         source = { kind = \"directory\", path = \"in\", every = \"1\" }\n\
         sink = 3\n\
         [[bindings]]\n\
         name = \"c\"\n\
         slot = \"s\"\n\
         source = { kind = \"ftp\" }\n",
    )
    .unwrap_err();
    for wanted in [
        "FILE:2: `bindings.name` is `Door 1`, which is not 1 to 40 lower-case letters, digits and `-`",
        "FILE:1: `bindings.slot` is missing",
        "FILE:3: `bindings.slott` is not a setting of it",
        "FILE:4: `bindings.body` is `jpeg`, which is none of `json`, `bytes`",
        "FILE:5: `bindings.rate` is `0`, 0.001 to 100000 inputs per second are allowed",
        "FILE:6: `bindings.queue` must be text, a number or true/false",
        "FILE:9: `bindings.source.host` is `8.8.8.8`, which is neither loopback nor private",
        "FILE:10: `bindings.source.topic` is `a/#/b`, which is no topic filter",
        "FILE:11: `bindings.source.qos` is `2`, which is none of `0`, `1`",
        "FILE:12: `bindings.source.password_file` is `secret`, which is no absolute path",
        "FILE:15: `bindings.sink.topic` is `a/{host}`, which has another placeholder than {device}, {slot}, {binding}",
        "FILE:20: `bindings.source.path` is `in`, which is no absolute path",
        "FILE:20: `bindings.source.every` is `1`, which has no unit",
        "FILE:21: `bindings.sink` is a table",
        "FILE:25: `bindings.source.kind` is `ftp`, which is none of `mqtt`, `directory`, `stdin`, `replay`",
        "FILE:22: `bindings.sink` is missing",
    ] {
        assert!(wrong.contains(wanted), "missing {wanted:?} in\n{wrong}");
    }
    assert_eq!(wrong.lines().count(), 16, "{wrong}");
}

#[test]
fn what_would_answer_itself_is_refused() {
    let one = |source: &str, sink: &str| {
        load(&format!(
            "[[bindings]]\nname = \"a\"\nslot = \"s\"\nsource = {{ {source} }}\nsink = {{ {sink} }}\n"
        ))
    };
    for (source, sink, ok) in [
        ("kind = \"mqtt\", topic = \"a/#\"", "kind = \"mqtt\", topic = \"a/{device}\"", false),
        ("kind = \"mqtt\", topic = \"+/s\"", "kind = \"mqtt\", topic = \"ä/{slot}\"", false),
        ("kind = \"mqtt\", topic = \"a/b/#\"", "kind = \"mqtt\", topic = \"a/b\"", false),
        ("kind = \"mqtt\", topic = \"a/+\"", "kind = \"mqtt\", topic = \"a/b/c\"", true),
        ("kind = \"mqtt\", topic = \"#\"", "kind = \"mqtt\", topic = \"b\", port = 1999", true),
        ("kind = \"directory\", path = \"/in\"", "kind = \"directory\", path = \"/in/\"", false),
        ("kind = \"directory\", path = \"/in\"", "kind = \"directory\", path = \"/in/answers\"", true),
        ("kind = \"directory\", path = \"/in\"", "kind = \"file\", path = \"/in/answers.jsonl\"", false),
        ("kind = \"directory\", path = \"/in\"", "kind = \"file\", path = \"/answers.jsonl\"", true),
    ] {
        let found = one(source, sink);
        let named = found.as_ref().err().is_none_or(|wrong| wrong.contains("would answer itself"));
        assert!(found.is_ok() == ok && named, "{source} {sink}: {found:?}");
    }
    let public = "kind = \"mqtt\", host = \"8.8.8.8\", topic = \"a\", allow_plaintext = true";
    assert!(one(public, "kind = \"stdout\"").is_ok());
    let files = one("kind = \"directory\", path = \"/in\"", "kind = \"stdout\", path = \"/x\"");
    assert!(files.unwrap_err().contains("`bindings.sink.path` is not a setting of it"));
    assert!(load("[bindings]\nname = \"x\"\n").unwrap_err().contains("begin each with `[[bindings]]`"));
    let twice = "[[bindings]]\nname = \"a\"\nslot = \"s\"\nsource = { kind = \"stdin\" }\nsink = { kind = \"none\" }\n";
    assert!(load(&twice.repeat(2)).unwrap_err().contains("`bindings.name` is `a` twice"));
    let queue = twice.replace("kind = \"stdin\"", "kind = \"directory\", path = \"/in\"") + "queue = 3\n";
    assert!(load(&queue).unwrap_err().contains("files wait in their folder"), "{:?}", load(&queue));
}
