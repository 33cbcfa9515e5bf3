//! An S3 bucket as the place of an export: the same names as in a folder, each object put as a whole, so readers see
//! the old rows or the new ones.
//!
//! Signatures (V4, in the query) come from `rusty-s3`; requests go by the HTTP client of the program, whose TLS is ring's.

use crate::alerts::outward;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use reqwest::{Client, RequestBuilder, StatusCode, Url};
use rusty_s3::{
    Bucket, Credentials, S3Action as _, UrlStyle,
    actions::{GetObject, PutObject},
};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr, time::Duration};

/// How long a signed address holds: long enough for a slow upload that was signed before it began.
const SIGNED_FOR: Duration = Duration::from_secs(15 * 60);
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Longest silence of the server.
const SILENCE: Duration = Duration::from_secs(60);
/// Largest object that is read to compare it: a day's file has some megabytes.
const MAX_OBJECT: usize = 1 << 30;
/// Of an error's XML.
const MAX_ERROR: usize = 16 << 10;
const TRIES: u32 = 6;
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// SHA-256 of the body, base64.
const CHECKSUM: &str = "x-amz-checksum-sha256";
/// Where no region is named: AWS's own default, and what most other servers take.
const DEFAULT_REGION: &str = "us-east-1";

/// `s3://bucket/prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Url {
    pub bucket: String,
    /// Without slashes around it; may be empty.
    pub prefix: String,
}

/// Why a text is no place in S3.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no place in S3: {reason}; write it as s3://bucket/prefix")]
pub struct S3UrlError {
    text: String,
    reason: &'static str,
}

impl FromStr for S3Url {
    type Err = S3UrlError;
    fn from_str(text: &str) -> Result<Self, S3UrlError> {
        let wrong = |reason| S3UrlError { text: text.chars().take(100).collect(), reason };
        let rest = text.strip_prefix("s3://").ok_or_else(|| wrong("it does not begin with s3://"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let sound = (3..=63).contains(&bucket.len()) && bucket.chars().all(fits);
        if !sound || !ends(bucket.chars().next()) || !ends(bucket.chars().last()) {
            return Err(wrong("a bucket's name has 3 to 63 lower-case letters, digits, `-` and `.`"));
        }
        let prefix = prefix.trim_matches('/');
        let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.chars().any(char::is_control);
        if !prefix.is_empty() && !prefix.split('/').all(plain) {
            return Err(wrong("a part of the prefix is empty, `.`, `..` or has control characters"));
        }
        Ok(Self { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl fmt::Display for S3Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix.as_str() {
            "" => write!(f, "s3://{}", self.bucket),
            prefix => write!(f, "s3://{}/{prefix}", self.bucket),
        }
    }
}

/// Who asks, and whom: as the tools of AWS read them from the environment.
#[derive(Clone)]
pub struct S3Access {
    /// `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`; absent: AWS itself.
    pub endpoint: Option<String>,
    /// `AWS_REGION`, `AWS_DEFAULT_REGION`.
    pub region: Option<String>,
    /// `AWS_ACCESS_KEY_ID`.
    pub key: String,
    /// `AWS_SECRET_ACCESS_KEY`. Never shown.
    pub secret: String,
    /// `AWS_SESSION_TOKEN`, of credentials that end.
    pub token: Option<String>,
    /// PEM: the content of the file `AWS_CA_BUNDLE`, trusted instead of the system's authorities.
    pub ca: Option<Vec<u8>>,
}

/// Why an export cannot go to S3, or did not.
#[derive(Debug, thiserror::Error)]
pub enum S3Error {
    #[error("the environment has no `{name}`")]
    Missing { name: &'static str },
    #[error("could not read the file that `AWS_CA_BUNDLE` names, `{path}`")]
    Ca { path: String, source: std::io::Error },
    #[error("endpoint `{endpoint}` cannot be used: {reason}")]
    Endpoint { endpoint: String, reason: String },
    #[error("could not make a client for `{endpoint}`")]
    Client { endpoint: String, source: reqwest::Error },
    #[error("could not {action} s3://{object} in {TRIES} tries")]
    Unreachable { action: &'static str, object: String, source: reqwest::Error },
    #[error("could not {action} s3://{object}: the server said {status} {code} {message}")]
    Refused {
        action: &'static str,
        /// Bucket and name.
        object: String,
        status: StatusCode,
        /// `NoSuchBucket`, `AccessDenied`, `SignatureDoesNotMatch`, ...
        code: String,
        message: String,
    },
    #[error("s3://{object} has more than {MAX_OBJECT} bytes: it is no file of an export")]
    TooLarge { object: String },
}

impl S3Error {
    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Missing { .. } => Some(
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL for servers that are not AWS",
            ),
            Self::Refused { code, .. } if code == "NoSuchBucket" => Some("make the bucket first"),
            _ => None,
        }
    }
}

impl S3Access {
    /// `var`: an environment, for tests another one than the process's.
    ///
    /// # Errors
    /// [`S3Error::Missing`], [`S3Error::Ca`].
    pub fn from_environment(var: impl Fn(&str) -> Option<String>) -> Result<Self, S3Error> {
        let first = |names: &[&str]| names.iter().find_map(|name| var(name).filter(|text| !text.is_empty()));
        let need = |name: &'static str| first(&[name]).ok_or(S3Error::Missing { name });
        let read = |path: String| std::fs::read(&path).map_err(|source| S3Error::Ca { path, source });
        Ok(Self {
            endpoint: first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]),
            region: first(&["AWS_REGION", "AWS_DEFAULT_REGION"]),
            key: need("AWS_ACCESS_KEY_ID")?,
            secret: need("AWS_SECRET_ACCESS_KEY")?,
            token: first(&["AWS_SESSION_TOKEN"]),
            ca: first(&["AWS_CA_BUNDLE"]).map(read).transpose()?,
        })
    }
}

/// How long to wait before the next try, after so many that failed; `None`: give up. Doubles, shortened by up to a
/// half. `jitter`: 0.0 to 1.0.
fn wait_after(failed: u32, jitter: f64) -> Option<Duration> {
    let doubled = FIRST_WAIT.saturating_mul(1u32.checked_shl(failed.saturating_sub(1)).unwrap_or(u32::MAX));
    (failed < TRIES).then(|| doubled.min(LONGEST_WAIT).mul_f64(1.0 - 0.5 * jitter.clamp(0.0, 1.0)))
}

/// Whether the same request may be answered otherwise in a moment.
fn is_temporary(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}

/// The text of `<tag>` in an error's XML, for people.
fn tag(xml: &str, tag: &str) -> String {
    let open = format!("<{tag}>");
    let found = xml.split_once(&open).and_then(|(_, rest)| rest.split_once("</"));
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    found.map(|(text, _)| text.chars().map(plain).take(200).collect()).unwrap_or_default()
}

/// A bucket that can be written to.
pub struct S3Place {
    bucket: Bucket,
    credentials: Credentials,
    prefix: String,
    http: Client,
}

impl S3Place {
    /// # Errors
    /// [`S3Error::Endpoint`], [`S3Error::Client`]. The bucket is not asked for yet.
    pub fn new(place: &S3Url, access: S3Access) -> Result<Self, S3Error> {
        let region = access.region.unwrap_or_else(|| DEFAULT_REGION.to_owned());
        let own = access.endpoint.is_some();
        let endpoint = access.endpoint.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
        let unusable = |reason: String| S3Error::Endpoint { endpoint: endpoint.clone(), reason };
        let url: Url = endpoint.parse().map_err(|error| unusable(format!("{error}")))?;
        // MinIO and its kin have no name for each bucket; a dot in the name fits no certificate.
        let style = if own || place.bucket.contains('.') { UrlStyle::Path } else { UrlStyle::VirtualHost };
        let bucket = Bucket::new(url.clone(), style, place.bucket.clone(), region)
            .map_err(|error| unusable(error.to_string()))?;
        let credentials = match access.token {
            Some(token) => Credentials::new_with_token(access.key, access.secret, token),
            None => Credentials::new(access.key, access.secret),
        };
        let client = |source| S3Error::Client { endpoint: endpoint.clone(), source };
        let http = outward::client(&url, access.ca.as_deref())
            .and_then(|http| http.connect_timeout(CONNECT_LIMIT).read_timeout(SILENCE).build())
            .map_err(client)?;
        Ok(Self { bucket, credentials, prefix: place.prefix.clone(), http })
    }

    /// The object's whole name.
    fn object(&self, name: &str) -> String {
        match self.prefix.as_str() {
            "" => name.to_owned(),
            prefix => format!("{prefix}/{name}"),
        }
    }

    /// For messages.
    fn full(&self, object: &str) -> String {
        format!("{}/{object}", self.bucket.name())
    }

    /// What is there; `None` if nothing is.
    ///
    /// # Errors
    /// [`S3Error`].
    pub async fn read(&self, name: &str) -> Result<Option<Vec<u8>>, S3Error> {
        let object = self.object(name);
        let request =
            || self.http.get(GetObject::new(&self.bucket, Some(&self.credentials), &object).sign(SIGNED_FOR));
        let (status, body) = self.ask("read", &object, request).await?;
        let refused = || self.refused("read", &object, status, &body);
        match status {
            StatusCode::NOT_FOUND => match refused() {
                S3Error::Refused { code, .. } if code != "NoSuchBucket" => Ok(None),
                error => Err(error),
            },
            status if status.is_success() => Ok(Some(body)),
            _ => Err(refused()),
        }
    }

    /// Puts a whole object; the server refuses it if it arrives changed.
    ///
    /// # Errors
    /// [`S3Error`].
    pub async fn put(&self, name: &str, bytes: bytes::Bytes) -> Result<(), S3Error> {
        let object = self.object(name);
        let sum = BASE64.encode(Sha256::digest(&bytes));
        let request = || {
            let mut put = PutObject::new(&self.bucket, Some(&self.credentials), &object);
            put.headers_mut().insert(CHECKSUM, sum.clone());
            self.http.put(put.sign(SIGNED_FOR)).header(CHECKSUM, &sum).body(bytes.clone())
        };
        let (status, body) = self.ask("write", &object, request).await?;
        match status.is_success() {
            true => Ok(()),
            false => Err(self.refused("write", &object, status, &body)),
        }
    }

    /// The first answer that is worth believing: failures that may pass are tried again, signed anew.
    async fn ask(
        &self,
        action: &'static str,
        object: &str,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<(StatusCode, Vec<u8>), S3Error> {
        let mut failed = 0;
        loop {
            let outcome = self.once(object, request()).await;
            let temporary = match &outcome {
                Ok((status, _)) => is_temporary(*status),
                Err(Once::Broken(_)) => true,
                Err(Once::TooLarge(_)) => false,
            };
            failed += 1;
            let wait = if temporary { wait_after(failed, rand::random()) } else { None };
            if let Some(wait) = wait {
                tracing::debug!(action, object, failed, ?wait, "s3.retry");
                tokio::time::sleep(wait).await;
                continue;
            }
            return outcome.map_err(|error| match error {
                Once::TooLarge(error) => error,
                Once::Broken(source) => {
                    // The address has the signature in it: nothing for a log.
                    S3Error::Unreachable { action, object: self.full(object), source: source.without_url() }
                }
            });
        }
    }

    async fn once(&self, object: &str, request: RequestBuilder) -> Result<(StatusCode, Vec<u8>), Once> {
        let mut answer = request.send().await.map_err(Once::Broken)?;
        let status = answer.status();
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(Once::Broken)? {
            if !status.is_success() {
                body.extend(chunk.iter().take(MAX_ERROR.saturating_sub(body.len())));
            } else if body.len() + chunk.len() > MAX_OBJECT {
                return Err(Once::TooLarge(S3Error::TooLarge { object: self.full(object) }));
            } else {
                body.extend_from_slice(&chunk);
            }
        }
        Ok((status, body))
    }

    fn refused(&self, action: &'static str, object: &str, status: StatusCode, body: &[u8]) -> S3Error {
        let xml = String::from_utf8_lossy(body);
        S3Error::Refused {
            action,
            object: self.full(object),
            status,
            code: tag(&xml, "Code"),
            message: tag(&xml, "Message"),
        }
    }
}

/// Why one request came to nothing.
enum Once {
    Broken(reqwest::Error),
    TooLarge(S3Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_mistakes_named() {
        for (text, bucket, prefix) in [
            ("s3://lake", "lake", ""),
            ("s3://my.lake-1/a/b/", "my.lake-1", "a/b"),
            ("s3://lake//", "lake", ""),
        ] {
            let place: S3Url = text.parse().unwrap();
            assert_eq!((place.bucket.as_str(), place.prefix.as_str()), (bucket, prefix));
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        for bad in
            ["lake", "s3://", "s3://Lake/a", "s3://la", "s3://-lake", "s3://lake/a//b", "s3://lake/../b"]
        {
            assert!(bad.parse::<S3Url>().unwrap_err().to_string().contains("s3://bucket/prefix"), "{bad}");
        }
    }

    #[test]
    fn waits_double_and_end() {
        let waits: Vec<_> =
            (1..).map_while(|failed| wait_after(failed, 0.0)).map(|w| w.as_millis()).collect();
        assert_eq!(waits, [250, 500, 1_000, 2_000, 4_000]);
        assert_eq!(wait_after(2, 1.0), Some(Duration::from_millis(250)));
        assert_eq!(wait_after(u32::MAX, 0.0), None);
    }

    #[test]
    fn the_environment_is_read_as_other_tools_read_it() {
        let of = |pairs: &'static [(&str, &str)]| {
            S3Access::from_environment(move |name| {
                pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let keys =
            of(&[("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AWS_DEFAULT_REGION", "eu-1")]);
        let access = keys.unwrap();
        assert_eq!((access.endpoint, access.region.as_deref()), (None, Some("eu-1")));
        for (pairs, missing) in [
            (&[("AWS_ACCESS_KEY_ID", "a")][..], "AWS_SECRET_ACCESS_KEY"),
            (&[("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "b")], "AWS_ACCESS_KEY_ID"),
        ] {
            let error = of(pairs).err().unwrap();
            assert!(error.to_string().contains(missing) && error.hint().is_some(), "{error}");
        }
    }

    #[test]
    fn errors_are_told_in_the_words_of_the_server() {
        let xml = "<Error><Code>NoSuchBucket</Code><Message>no\nsuch</Message></Error>";
        assert_eq!((tag(xml, "Code").as_str(), tag(xml, "Message").as_str()), ("NoSuchBucket", "no such"));
        assert_eq!(tag("<html>", "Code"), "");
    }
}
