//! Times the engine and the worker pool on a model file with one FP32 input.
//!
//! `cargo run --profile ci -p edgefleet-agent --example engine_speed -- models/digits/v1/model.onnx image 1,64`

use edgefleet_agent::engine::{Engine, LoadedModel, pool::WorkerPool, tract::TractEngine};
use edgefleet_shared::{
    bundle::{Interface, TensorSpec},
    tensor::{Datatype, Tensor},
};
use std::{path::Path, sync::Arc, time::Instant};

const ROUNDS: usize = 5_000;

fn median(mut micros: Vec<f64>) -> f64 {
    micros.sort_by(f64::total_cmp);
    micros[micros.len() / 2]
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let [path, name, shape] = std::env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| {
        anyhow::anyhow!("usage: engine_speed MODEL INPUT SHAPE (a digits model, as it names the outputs)")
    })?;
    let shape: Vec<usize> = shape.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let spec = |name: &str, datatype, shape: Vec<i64>| TensorSpec { name: name.into(), datatype, shape };
    let mut open: Vec<i64> = shape.iter().map(|dim| *dim as i64).collect();
    open[0] = -1;
    let interface = Interface {
        inputs: vec![spec(&name, Datatype::Fp32, open)],
        outputs: vec![spec("probabilities", Datatype::Fp32, vec![-1, 10])],
    };
    let started = Instant::now();
    let model: Arc<dyn LoadedModel> = TractEngine::new().load(Path::new(&path), &interface)?.into();
    println!("load {:.2} ms", started.elapsed().as_secs_f64() * 1e3);
    let data = vec![0u8; shape.iter().product::<usize>() * 4];
    let input = vec![Tensor::new(name, Datatype::Fp32, shape, data.into())?];
    let started = Instant::now();
    model.run(&input)?;
    println!("first inference {:.0} us", started.elapsed().as_secs_f64() * 1e6);

    let pool = WorkerPool::new(1, 64)?;
    let (mut direct, mut pooled, mut infer) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let started = Instant::now();
        model.run(&input)?;
        direct.push(started.elapsed().as_secs_f64() * 1e6);
        let started = Instant::now();
        let answer = pool.run(model.clone(), input.clone()).await?;
        pooled.push(started.elapsed().as_secs_f64() * 1e6);
        infer.push(answer.infer.as_secs_f64() * 1e6);
    }
    let (direct, pooled) = (median(direct), median(pooled));
    println!("inference p50 {direct:.1} us; inside a worker {:.1} us", median(infer));
    println!("through the pool p50 {pooled:.1} us: {:.1} us more", pooled - direct);
    Ok(())
}
