//! One try by SMTP.

use super::{
    channel::{Email, SmtpTls},
    delivery::{Delivery, Outcome},
    sender::{Tried, one_line},
};
use edgefleet_shared::time::Timestamp;
use lettre::{
    AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor,
    message::header::ContentType,
    transport::smtp::{
        authentication::Credentials,
        client::{Certificate, Tls, TlsParameters},
    },
};
use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

/// For one step of the conversation, and for all of it.
const STEP_LIMIT: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(30);

pub(super) struct MailSender {
    email: Email,
    transport: AsyncSmtpTransport<Tokio1Executor>,
}

impl MailSender {
    pub(super) fn new(email: Email) -> Result<Self, String> {
        let tls = match email.tls {
            SmtpTls::None => Tls::None,
            SmtpTls::StartTls => Tls::Required(parameters(&email)?),
            SmtpTls::Tls => Tls::Wrapper(parameters(&email)?),
        };
        // Despite its name the one way to say all of it; what is dangerous is `Tls::None`.
        let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&email.host)
            .port(email.port)
            .tls(tls)
            .timeout(Some(STEP_LIMIT));
        if let Some((user, password)) = &email.login {
            let password = String::from_utf8(password.reveal().to_vec())
                .map_err(|_| "its password is not UTF-8".to_owned())?;
            transport = transport.credentials(Credentials::new(user.clone(), password));
        }
        Ok(Self { transport: transport.build(), email })
    }

    pub(super) async fn send(&self, delivery: &Delivery, now: Timestamp) -> Tried {
        let begun = Instant::now();
        let took = || u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let failed = |status, error: String| Outcome {
            ok: false,
            status,
            latency_ms: took(),
            error: Some(one_line(&error)),
        };
        let message = match self.message(delivery, now) {
            Ok(message) => message,
            Err(error) => {
                let outcome = failed(None, format!("the mail cannot be written: {error}"));
                return Tried { outcome, asked: None, hopeless: true };
            }
        };
        match tokio::time::timeout(LIMIT, self.transport.send(message)).await {
            Ok(Ok(answer)) => {
                let status = Some(u16::from(answer.code()));
                Tried::of(Outcome { ok: true, status, latency_ms: took(), error: None })
            }
            Ok(Err(error)) => {
                let status = error.status().map(u16::from);
                let causes = std::iter::successors(std::error::Error::source(&error), |e| e.source());
                let text = causes.fold(error.to_string(), |mut text, cause| {
                    let _ = write!(text, ": {cause}"); // writing to a String cannot fail
                    text
                });
                // A 5xx may be a mailbox that is full or a password that is being changed: tried again like all.
                Tried::of(failed(status, text))
            }
            Err(_) => Tried::of(failed(None, format!("no end within {} s", LIMIT.as_secs()))),
        }
    }

    fn message(&self, delivery: &Delivery, now: Timestamp) -> Result<Message, lettre::error::Error> {
        let event = &delivery.event;
        let domain = self.email.from.email.domain();
        let mut message = Message::builder()
            .from(self.email.from.clone())
            .subject(format!("[{}] {}", event.severity, event.title))
            .date(now.to_system_time())
            // The same at every try: mail programs show one of two with the same id.
            .message_id(Some(format!("<{}@{domain}>", delivery.key())))
            .header(ContentType::TEXT_PLAIN);
        for to in &self.email.to {
            message = message.to(to.clone());
        }
        message.body(text(delivery))
    }
}

/// What people read.
fn text(delivery: &Delivery) -> String {
    let event = &delivery.event;
    let mut text = format!("{}\n", event.title);
    if !event.text.is_empty() {
        let _ = write!(text, "\n{}\n", event.text); // writing to a String cannot fail
    }
    let _ =
        write!(text, "\nkind      {}\nseverity  {}\nat        {}\n", event.kind, event.severity, event.at);
    for (what, which) in event.subject.parts() {
        let _ = writeln!(text, "{what:<9} {which}");
    }
    for (name, value) in &event.numbers {
        let _ = writeln!(text, "{name:<9} {value}");
    }
    let _ = writeln!(text, "alert     {}", event.id);
    text
}

fn parameters(email: &Email) -> Result<TlsParameters, String> {
    let mut builder = TlsParameters::builder(email.host.clone());
    if let Some(pem) = &email.ca {
        let certificate = Certificate::from_pem(pem).map_err(|e| format!("its `ca_file`: {e}"))?;
        builder = builder.add_root_certificate(certificate);
    }
    builder.build_rustls().map_err(|error| error.to_string())
}
