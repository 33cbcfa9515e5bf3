use super::*;
use std::io::Write;

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn nothing() -> [(String, String); 0] {
    []
}

#[test]
fn defaults_alone_are_a_valid_configuration() {
    let config = load(None, nothing(), []).unwrap();
    assert_eq!(config.http_listen, "127.0.0.1:8000".parse().unwrap());
    assert_eq!(config.metrics_listen, "127.0.0.1:8002".parse().unwrap());
    assert_eq!(config.probe_timeout, Duration::from_secs(60));
    assert!(!config.allow_remote);
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let file = file("data = \"/from-file\"\nhardware = \"from-file\"\n[serving]\nqueue = 7\n");
    let env = [
        ("EDGEFLEET_AGENT_DATA".into(), "/from-env".into()),
        ("EDGEFLEET_AGENT_HARDWARE".into(), "from-env".into()),
        ("EDGEFLEET_AGENT_CONFIG".into(), "read by the command line".into()),
        ("EDGEFLEET_AGENT_BIN".into(), "for a controller on the same machine".into()),
        ("PATH".into(), "/bin".into()),
    ];
    let config = load(Some(file.path()), env, [("hardware", "from-flag".into())]).unwrap();
    assert_eq!((config.data.to_str(), config.hardware.as_str()), (Some("/from-env"), "from-flag"));
    assert_eq!(config.queue, 7);
}

#[test]
fn every_mistake_is_named_with_its_place_at_once() {
    let file = file(
        "data = \"\"\n[http]\nlisten = \"localhost\"\nbody_limit = 16\nlisten_on = 3\n\n[serving]\nqueue = 0\n\
         [probe]\ntimeout = \"90\"\nmemory_headroom = [1]\n[oubox]\nrecords = 1\n",
    );
    let env = [("EDGEFLEET_AGENT_OUTBOX_SIZE".to_owned(), "1".to_owned())];
    let wrong = load(Some(file.path()), env, [("log.format", "xml".into())]).unwrap_err();
    let path = file.path().display().to_string();
    let text: Vec<_> = wrong.iter().map(|e| e.to_string().replace(&path, "FILE")).collect();
    let text = text.join("\n");
    for wanted in [
        "FILE:1: `data` is ``",
        "FILE:3: `http.listen` is `localhost`, which is no address; write it as `127.0.0.1:8000`",
        "FILE:4: `http.body_limit` is `16`, which has no unit; write `16B`, `16KiB` or `16MiB`",
        "FILE:5: `http.listen_on` is not a setting",
        "FILE:8: `serving.queue` is `0`, 1 to 100000 are allowed",
        "FILE:10: `probe.timeout` is `90`, which has no unit; write `90s` or `90m`",
        "FILE:11: `probe.memory_headroom` must be text",
        "FILE:12: `oubox` is not a setting",
        "environment variable EDGEFLEET_AGENT_OUTBOX_SIZE: `outbox_size` is not a setting",
        "flag --log-format: `log.format` is `xml`, which is neither `text` nor `json`",
    ] {
        assert!(text.contains(wanted), "missing {wanted:?} in\n{text}");
    }
    assert_eq!(wrong.len(), 10, "{text}");
}

#[test]
fn toml_errors_have_a_line_too() {
    let wrong = load(Some(file("data = \"/x\"\nhttp = = 3\n").path()), nothing(), []).unwrap_err();
    assert!(matches!(wrong[0].origin, Origin::File { line: 2, .. }), "{wrong:?}");
    let missing = load(Some(Path::new("/does/not/exist.toml")), nothing(), []).unwrap_err();
    assert!(missing[0].to_string().contains("cannot be read"), "{missing:?}");
}

#[test]
fn nothing_listens_beyond_loopback_by_accident() {
    for (listen, allow, ok) in [
        ("0.0.0.0:8000", "false", false),
        ("192.168.1.2:0", "false", false),
        ("[::]:8000", "false", false),
        ("[::1]:0", "false", true),
        ("127.0.0.2:0", "false", true),
        ("0.0.0.0:8000", "true", true),
    ] {
        for key in ["http.listen", "metrics.listen"] {
            let flags = [(key, listen.to_owned()), ("http.allow_remote", allow.to_owned())];
            assert_eq!(load(None, nothing(), flags).is_ok(), ok, "{key} {listen} {allow}");
        }
        for key in ["grpc.listen", "remote.listen"] {
            let flags = [(key, listen.to_owned()), ("http.allow_remote", allow.to_owned())];
            assert_eq!(load(None, nothing(), flags).is_ok(), ok, "{key} {listen} {allow}");
        }
    }
    let token = ("remote.token", "0123456789abcdef".to_owned());
    let everywhere = ("remote.listen", "0.0.0.0:8443".to_owned());
    let certificate = ("remote.tls_certificate", "/c.pem".to_owned());
    let key = ("remote.tls_key", "/k.pem".to_owned());
    for (flags, ok) in [
        (vec![everywhere.clone(), token.clone()], true),
        (vec![everywhere.clone(), certificate.clone(), key.clone()], true),
        (vec![everywhere.clone(), certificate.clone()], false),
        (vec![everywhere.clone(), key.clone()], false),
        // TLS is that of `remote.listen` alone.
        (vec![("http.listen", "0.0.0.0:8000".to_owned()), certificate, key], false),
        (vec![("http.listen", "0.0.0.0:8000".to_owned()), token], true),
    ] {
        assert_eq!(load(None, nothing(), flags.clone()).is_ok(), ok, "{flags:?}");
    }
}

#[test]
fn a_socket_has_a_path_and_rights() {
    let config = load(None, nothing(), []).unwrap();
    assert_eq!((config.socket, config.socket_mode, config.shared_memory), (None, 0o660, true));
    assert_eq!(config.grpc_listen, Some("127.0.0.1:8001".parse().unwrap()));
    let flags = [("serving.socket", "/run/x.sock"), ("serving.socket_mode", "600"), ("grpc.listen", "")];
    let config = load(None, nothing(), flags.map(|(key, value)| (key, value.to_owned()))).unwrap();
    assert_eq!((config.socket, config.socket_mode), (Some("/run/x.sock".into()), 0o600));
    assert_eq!(config.grpc_listen, None);
    for mode in ["rw", "8", "1777", ""] {
        assert!(load(None, nothing(), [("serving.socket_mode", mode.to_owned())]).is_err(), "{mode}");
    }
}

#[test]
fn host_names_are_names_and_a_token_is_long_and_never_shown() {
    let flags = [
        ("http.host_names", "cam-7.lan cam-7".to_owned()),
        ("http.local_token", "0123456789abcdef".to_owned()),
    ];
    let config = load(None, nothing(), flags).unwrap();
    assert_eq!(config.host_names, ["cam-7.lan", "cam-7"]);
    assert_eq!(config.local_token.as_ref().map(LocalToken::reveal), Some("0123456789abcdef"));
    assert!(!format!("{config:?}").contains("0123456789"));
    let flags = [("http.host_names", "http://cam-7".to_owned()), ("http.local_token", "geheim".to_owned())];
    let wrong = load(None, nothing(), flags).unwrap_err();
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    assert!(wrong[0].to_string().contains("`http://cam-7` is no host name"), "{wrong:?}");
    assert!(!wrong[1].to_string().contains("geheim"), "{wrong:?}");
    assert_eq!(load(None, nothing(), []).unwrap().local_token, None);
}

#[test]
fn engines_are_named_by_patterns_and_an_unknown_one_is_told() {
    let good = file(
        "[engine]\nonnxruntime = \"/opt/libonnxruntime.so\"\nprefer = \"onnxruntime */int8-qdq\"\n\
         forbid = \"tract/f16\"\nthreads = 2\n[serving]\nbatch = 8\n",
    );
    let config = load(Some(good.path()), nothing(), []).unwrap();
    assert_eq!(config.engine_onnxruntime, Some("/opt/libonnxruntime.so".into()));
    let policy = config.engine_policy;
    assert_eq!(policy.rows, 8, "what is served decides");
    assert_eq!((policy.prefer.len(), policy.forbid.len(), policy.pin.len(), policy.threads), (2, 1, 0, 2));
    let bad = file("[engine]\nonnxruntime = \"lib.so\"\npin = \"openvino\"\n");
    let wrong = load(Some(bad.path()), nothing(), []).unwrap_err();
    let text: Vec<_> = wrong.iter().map(ToString::to_string).collect();
    let text = text.join("\n");
    for wanted in
        ["which is no absolute path", "but `openvino` is no engine; there are `tract` and `onnxruntime`"]
    {
        assert!(text.contains(wanted), "{text}");
    }
    assert_eq!(load(None, nothing(), []).unwrap().engine_policy.threads, 1);
}
