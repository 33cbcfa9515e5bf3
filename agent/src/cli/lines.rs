//! `edgefleet-agent infer MODEL|BUNDLE|SLOT --lines`: requests on stdin, answers on stdout, a line each, in order.

use super::{
    Failure,
    infer::{self, InferArgs, Opened, output},
    peer::Peer,
};
use crate::{
    bindings::lines::{Line, Lines},
    serving::{
        local::Body,
        oip::{InferRequest, NoMemory},
    },
};
use bytes::Bytes;
use edgefleet_shared::ids::SlotName;
use serde_json::json;
use std::{
    io::{self, Write},
    process::ExitCode,
};
use tokio::io::BufReader;

/// Bytes of the longest request.
const MAX_LINE: usize = 64 << 20;

enum Answerer {
    /// In this process, as `infer` without `--lines`.
    Here(Box<Opened>),
    /// A running agent.
    There(Peer),
}

pub(super) async fn lines(args: InferArgs) -> Result<ExitCode, Failure> {
    let slot = args.model.to_str().and_then(|text| text.parse::<SlotName>().ok());
    let answerer = match slot {
        Some(slot) if !args.model.exists() => Answerer::There(Peer::new("local", &slot, &args.config)?),
        _ => Answerer::Here(Box::new(infer::open(&args)?)),
    };
    let unread = |e: io::Error| Failure::new("could not read stdin", e.into());
    let mut lines = Lines::new(BufReader::new(tokio::io::stdin()), MAX_LINE);
    let mut failed = false;
    while let Some((number, line)) = lines.next().await.map_err(unread)? {
        let answer = match line {
            Line::TooLong => Err(format!("the line has more than {MAX_LINE} bytes")),
            Line::Text(text) => answerer.answer(text).await,
        };
        failed |= answer.is_err();
        let answer =
            answer.unwrap_or_else(|error| json!({"error": error, "line": number}).to_string().into());
        let mut out = io::stdout().lock();
        let written = out.write_all(&answer).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
        written.map_err(|e| Failure::new("could not write to stdout", e.into()))?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl Answerer {
    async fn answer(&self, request: Bytes) -> Result<Bytes, String> {
        match self {
            Self::Here(opened) => here(opened, request),
            Self::There(peer) => {
                let answer = peer.ask(Body::Json(request)).await?;
                let is_line = !answer.is_empty() && !answer.contains(&b'\n');
                if is_line {
                    Ok(answer)
                } else {
                    Err("the answer is not all JSON: ask for no binary data".into())
                }
            }
        }
    }
}

fn here(opened: &Opened, request: Bytes) -> Result<Bytes, String> {
    let Opened { subject, model, .. } = opened;
    let request = InferRequest::parse(request, None, &subject.interface, subject.batch_max, &mut NoMemory)
        .map_err(|e| e.to_string())?;
    let answer = model.run(&request.inputs).map_err(|e| e.to_string())?;
    let wanted = request.outputs.iter().filter_map(|wanted| answer.iter().find(|t| t.name() == wanted.name));
    let outputs = wanted.map(output).collect::<anyhow::Result<Vec<_>>>().map_err(|e| format!("{e:#}"))?;
    let mut document = json!({"model_name": subject.name, "outputs": outputs});
    if let Some(id) = request.id {
        document["id"] = id.into();
    }
    Ok(document.to_string().into())
}
