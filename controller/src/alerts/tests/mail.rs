//! Mail, to a small SMTP server in this process.

use super::receivers::{Hand, event, open, store, tls};
use crate::alerts::{Channel, DeliveryState, Email, Secret, SmtpTls, Wants, Way};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
};

/// What one client said, line by line, and the mails it left.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<(Vec<String>, Vec<String>)>>);

/// Speaks enough of RFC 5321 for one client. True: it wants TLS.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufReader<S>,
    heard: &Heard,
    offer_tls: bool,
    greet: bool,
) -> std::io::Result<bool> {
    if greet {
        stream.write_all(b"220 mail.test ESMTP\r\n").await?;
    }
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(false);
        }
        let line = line.trim_end().to_owned();
        heard.0.lock().0.push(line.clone());
        let verb = line.split([' ', ':']).next().unwrap_or("").to_ascii_uppercase();
        let answer: &[u8] = match verb.as_str() {
            "EHLO" if offer_tls => b"250-mail.test\r\n250 STARTTLS\r\n",
            "EHLO" => b"250-mail.test\r\n250 AUTH PLAIN LOGIN\r\n",
            "STARTTLS" => {
                stream.write_all(b"220 go on\r\n").await?;
                return Ok(true);
            }
            "AUTH" => b"235 welcome\r\n",
            "MAIL" | "RCPT" | "NOOP" | "RSET" => b"250 fine\r\n",
            "DATA" => {
                stream.write_all(b"354 go on\r\n").await?;
                let mut mail = String::new();
                loop {
                    let mut line = String::new();
                    if stream.read_line(&mut line).await? == 0 || line == ".\r\n" {
                        break;
                    }
                    mail.push_str(line.strip_prefix('.').unwrap_or(&line));
                }
                heard.0.lock().1.push(mail);
                b"250 taken\r\n"
            }
            "QUIT" => {
                stream.write_all(b"221 bye\r\n").await?;
                return Ok(false);
            }
            _ => b"500 what?\r\n",
        };
        stream.write_all(answer).await?;
    }
}

/// An SMTP server with STARTTLS, its port, its certificate, and what it heard.
async fn server() -> (u16, Vec<u8>, Heard) {
    let (acceptor, ca) = tls();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Heard::default();
    let own = heard.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            if let Ok(true) = serve(&mut stream, &own, true, true).await
                && let Ok(tls) = acceptor.accept(stream.into_inner()).await
            {
                own.0.lock().0.push("(encrypted)".to_owned());
                let _ = serve(&mut BufReader::new(tls), &own, false, false).await;
            }
        }
    });
    (port, ca, heard)
}

fn mail(port: u16, tls: SmtpTls, ca: Option<Vec<u8>>, login: bool) -> Channel {
    let email = Email {
        host: "localhost".to_owned(),
        port,
        tls,
        login: login.then(|| ("fleet".to_owned(), Secret::new("hunter2"))),
        from: "Fleet <fleet@example.com>".parse().unwrap(),
        to: vec!["Ops <ops@example.com>".parse().unwrap(), "night@example.com".parse().unwrap()],
        ca,
    };
    let digest = std::time::Duration::ZERO;
    Channel { name: "mail".parse().unwrap(), wants: Wants::default(), digest, way: Way::Email(email) }
}

#[tokio::test]
async fn a_mail_arrives_encrypted_and_names_the_alert() {
    let (dir, hand) = (tempfile::tempdir().unwrap(), Hand::new());
    let (port, ca, heard) = server().await;
    let store = store(dir.path()).await;
    let alerts = open(&store, vec![mail(port, SmtpTls::StartTls, Some(ca), true)], &hand).await;
    let raised = event(&hand, "inc-1");
    alerts.raise(raised.clone()).await.unwrap();
    alerts.route_once().await.unwrap();
    assert_eq!(
        alerts.pass(&alerts.0.strands[0]).await.unwrap(),
        None,
        "{:?}",
        alerts.list(None, None, 9).await
    );
    let [over] = alerts.list(Some(DeliveryState::Delivered), None, 9).await.unwrap().try_into().unwrap();
    assert_eq!(over.last.unwrap().status, Some(250));
    let (lines, mails) = heard.0.lock().clone();
    let tls = lines.iter().position(|line| line == "(encrypted)").unwrap();
    let auth = lines.iter().position(|line| line.starts_with("AUTH")).unwrap();
    assert!(auth > tls, "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line.starts_with("RCPT")).count(), 2);
    let [mail] = mails.try_into().unwrap();
    for part in [
        "Subject: [critical] Inputs of digits drift\r\n",
        "From: Fleet <fleet@example.com>\r\n",
        &format!("Message-ID: <{}.mail@example.com>\r\n", raised.id),
        "Blurred at 3 sites",
        "device    dev-1",
        "js        0.42",
    ] {
        assert!(mail.contains(part), "{part}\n{mail}");
    }
}

#[tokio::test]
async fn a_server_that_cannot_prove_its_name_gets_neither_mail_nor_password() {
    let (dir, hand) = (tempfile::tempdir().unwrap(), Hand::new());
    let (port, _, heard) = server().await;
    let (_, stranger, _) = server().await;
    let store = store(dir.path()).await;
    let alerts = open(&store, vec![mail(port, SmtpTls::StartTls, Some(stranger), true)], &hand).await;
    let [tested] = alerts.test(None, "token:ops").await.unwrap().try_into().unwrap();
    assert!(!tested.outcome.ok);
    let shown = format!("{tested:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    let (lines, mails) = heard.0.lock().clone();
    assert!(mails.is_empty() && !lines.iter().any(|line| line.starts_with("AUTH")), "{lines:?}");
}

#[tokio::test]
async fn mail_without_encryption_is_possible_where_it_is_asked_for() {
    let (dir, hand) = (tempfile::tempdir().unwrap(), Hand::new());
    let (port, _, heard) = server().await;
    let store = store(dir.path()).await;
    let alerts = open(&store, vec![mail(port, SmtpTls::None, None, false)], &hand).await;
    let [tested] = alerts.test(Some("mail"), "token:ops").await.unwrap().try_into().unwrap();
    assert!(tested.outcome.ok, "{tested:?}");
    assert_eq!(heard.0.lock().1.len(), 1);
}
