//! A real agent whose engine becomes slow while it serves: the choice is made anew, nobody who asks loses an answer, and
//! the controller tells people.
//!
//! The engine is a thin library before the real one, and as slow as the test says. The watch that takes ten minutes
//! of drift for one runs sixty times faster here (`EDGEFLEET_HASTE`); everything else is as devices have it.

#[path = "../../agent/tests/support/engine.rs"]
#[allow(dead_code, unreachable_pub, reason = "other tests need its other vices")]
mod engine;
#[path = "../../agent/tests/support/ort.rs"]
#[allow(unreachable_pub, reason = "a module of several tests")]
mod ort;

/// What counts are times: nothing else may run beside it.
mod alone {
    use super::{
        engine::{self, Vice},
        ort,
    };
    use anyhow::{Context, Result, ensure};
    use edgefleet_tests::faults::{
        Device, KeepAlive, Oracle, Stage, failpoint_agent_bin, source::Source, until,
    };
    use serde_json::Value;
    use std::{
        io::Write as _,
        sync::{
            Arc,
            atomic::{AtomicBool, AtomicU64, Ordering},
        },
        time::Duration,
    };

    const HARDWARE: &str = "bench-board";
    /// Between an answer and the next request: moments when nobody asks.
    const PAUSE: Duration = Duration::from_millis(15);

    /// Somebody who asks one after the other and accepts no failure and no wrong answer.
    struct Load {
        stop: Arc<AtomicBool>,
        answers: Arc<AtomicU64>,
        task: tokio::task::JoinHandle<Result<()>>,
    }

    impl Load {
        fn start(host: &str, oracle: &Oracle) -> Self {
            let (stop, answers) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
            let (told, count, host, oracle) =
                (stop.clone(), answers.clone(), host.to_owned(), oracle.clone());
            let task = tokio::spawn(async move {
                let mut connection = KeepAlive::connect(&host).await?;
                let mut pace = tokio::time::interval(PAUSE);
                pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                let mut question = 0;
                while !told.load(Ordering::Relaxed) {
                    pace.reset(); // from the answer on
                    pace.tick().await;
                    oracle
                        .ask(&mut connection, question)
                        .await
                        .with_context(|| format!("request {question}"))?;
                    question += 1;
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
            Self { stop, answers, task }
        }
        fn answers(&self) -> u64 {
            self.answers.load(Ordering::Relaxed)
        }
        async fn stop(self) -> Result<u64> {
            self.stop.store(true, Ordering::Relaxed);
            self.task.await?.context("somebody who asked lost an answer")?;
            Ok(self.answers.load(Ordering::Relaxed))
        }
    }

    /// Waits until the agent's own status says that `setup` runs the digits; what it says.
    async fn runs_on(device: &Device, load: &Load, engine: &str) -> Result<Value> {
        until(&format!("{engine} to run the digits"), async || {
            ensure!(!load.task.is_finished(), "somebody who asked gave up");
            let slot = device.status().await?["engines"]["slots"]["digits"].take();
            let on_it = slot["setup"].as_str().is_some_and(|setup| setup.starts_with(engine));
            Ok(if on_it && slot["current"] == true { Ok(slot) } else { Err(slot.to_string()) })
        })
        .await
    }

    /// Waits until the controller shows of the slot what `wanted` wants.
    async fn told(stage: &Stage, device: &Device, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        until("the report", async || {
            let shown = stage.device(device).await?;
            let engine = &shown["reported"]["slots"]["digits"]["engine"];
            Ok(if wanted(engine) { Ok(engine.clone()) } else { Err(shown.to_string()) })
        })
        .await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_engine_that_becomes_slow_gives_way_and_nobody_loses_an_answer() -> Result<()> {
        let Some(real) = ort::library() else { return Ok(()) };
        let (folder, library) = engine::library(&real, Vice::SlowsDown);
        let stage = Stage::open().await?;
        stage.publish(Source::slow("slow")?, 1).await?;
        let oracle = Oracle::default().with("digits@1", "fixtures/golden/slow")?;
        let mut device = stage.enrol("drifting").await?;
        device.program = failpoint_agent_bin()?;
        let settings = [
            ("EDGEFLEET_HASTE", "60".to_owned()),
            ("EDGEFLEET_AGENT_HARDWARE", HARDWARE.to_owned()),
            ("EDGEFLEET_AGENT_ENGINE_ONNXRUNTIME", library.to_string_lossy().into_owned()),
            ("EDGEFLEET_AGENT_ENGINE_PREFER", "onnxruntime".to_owned()),
            ("EDGEFLEET_AGENT_PROBE_TIMEOUT", "120s".to_owned()),
        ];
        device.start_with(&settings).await?;
        stage.committed(&stage.assign(1, 1).await?, &device).await?;

        let load = Load::start(&device.http, &oracle);
        let slot = runs_on(&device, &load, "onnxruntime/").await?;
        ensure!(slot["again"].is_null(), "nothing has drifted yet: {slot}");
        let first = told(&stage, &device, |engine| engine["setup"] == "onnxruntime/f32/1").await?;
        let median = |engine: &Value, setup: &str| {
            let measured = engine["measured"].as_array().into_iter().flatten();
            measured.filter(|one| one["setup"] == setup).find_map(|one| one["median_ms"].as_f64())
        };
        let before = median(&first, "onnxruntime/f32/1").context("no median")?;
        let (asked_before, shown) = (load.answers(), stage.command(&["model", "show", "digits@1"]).await?);
        ensure!(shown.contains(HARDWARE) && shown.contains("onnxruntime/f32/1"), "{shown}");

        // 40 ms more for each, in the agent and in every child that measures.
        // In place: the library has the file mapped.
        let flag = std::fs::OpenOptions::new().write(true).open(folder.path().join("libslow.so"));
        flag?.write_all(b"1")?;
        let slot = runs_on(&device, &load, "tract/").await?;
        ensure!(slot["again"]["why"] == "drifted" && slot["again"]["from"] == "onnxruntime/f32/1", "{slot}");
        let after_switch = load.answers();
        ensure!(after_switch > asked_before, "nobody asked meanwhile");

        let second = told(&stage, &device, |engine| engine["setup"] == "tract/f32/1").await?;
        ensure!(second["again"]["why"] == "drifted" && second["again"]["times"] == 1, "{second}");
        let after = median(&second, "onnxruntime/f32/1").context("no median")?;
        ensure!(after > before + 35.0, "measured {before} ms before and {after} ms after");
        let tract = median(&second, "tract/f32/1").context("no median")?;
        ensure!(tract < after * 0.9, "tract takes {tract} ms of {after} ms");
        println!("onnxruntime {before} ms, then {after} ms; tract {tract} ms");

        // People are told: of the device, and of the bundle by hardware class.
        let shown = stage.command(&["device", "show", &device.id]).await?;
        for words in ["runs on tract/f32/1", "because it had become slower; before: onnxruntime/f32/1"] {
            ensure!(shown.contains(words), "{shown}");
        }
        let used = stage.get("/api/v1/models/digits/bundles/1/engines").await?;
        ensure!(used["devices"] == 1 && used["drifted"] == 1, "{used}");
        let class = &used["classes"][0];
        ensure!(class["hardware"] == HARDWARE && class["setups"][0]["setup"] == "tract/f32/1", "{used}");
        ensure!(class["setups"][0]["median_ms"].as_f64() == Some(tract), "{used}");
        let json = stage.command(&["model", "show", "digits@1", "--output", "json"]).await?;
        ensure!(serde_json::from_str::<Value>(&json)?["engines"] == used, "{json}");

        // It goes on serving, and no answer was lost or wrong.
        until("answers of the new engine", async || {
            ensure!(!load.task.is_finished(), "somebody who asked gave up");
            let more = load.answers() - after_switch;
            Ok(if more >= 50 { Ok(()) } else { Err(format!("{more} of 50")) })
        })
        .await?;
        let asked = load.stop().await?;
        println!("{asked} answers, all right");
        device.stop().await
    }
}
