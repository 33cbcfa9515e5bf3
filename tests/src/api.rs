//! The controller's HTTPS API, asked with its CA and a token.

use anyhow::{Context, Result, ensure};
use reqwest::{Certificate, Client};
use serde_json::Value;
use std::{path::Path, time::Duration};

const LIMIT: Duration = Duration::from_secs(20);

/// Cheap to clone.
#[derive(Clone)]
pub struct Api {
    client: Client,
    url: String,
    token: String,
}

impl Api {
    /// An administrator's view of the controller in `data`, listening on `https` (host:port).
    ///
    /// # Errors
    /// If the folder has no CA or no token.
    pub fn open(data: &Path, https: &str) -> Result<Self> {
        let read = |name: &str| {
            std::fs::read(data.join(name)).with_context(|| format!("could not read the controller's {name}"))
        };
        let client = Client::builder()
            .tls_certs_only([Certificate::from_pem(&read("ca/ca.pem")?)?])
            .no_proxy()
            .timeout(LIMIT)
            .build()?;
        let token = String::from_utf8(read("admin-token")?)?.trim().to_owned();
        Ok(Self { client, url: format!("https://{https}"), token })
    }

    /// # Errors
    /// If it does not answer with success.
    pub async fn get(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.text(path).await?)?)
    }

    /// # Errors
    /// As [`Self::get`].
    pub async fn text(&self, path: &str) -> Result<String> {
        let response = self.client.get(format!("{}{path}", self.url)).bearer_auth(&self.token).send().await?;
        let status = response.status();
        let body = response.text().await?;
        ensure!(status.is_success(), "GET {path}: {status}: {body}");
        Ok(body)
    }

    /// One value of `/metrics`; several lines of a name are added up.
    ///
    /// # Errors
    /// If there is none of this name.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let text = self.text("/metrics").await?;
        let lines: Vec<_> = text
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
            .collect();
        ensure!(!lines.is_empty(), "no metric `{name}`");
        lines
            .into_iter()
            .map(|line| {
                let value = line.rsplit(' ').next().unwrap_or_default();
                value.parse::<f64>().with_context(|| format!("`{line}` is no metric"))
            })
            .sum()
    }
}
