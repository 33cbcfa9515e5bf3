//! `edgefleet advice`: what to do about how models are doing.

mod take;

use super::{context::Context, failure::Failure, incident::FilterArgs, table};
use crate::{
    advice::{Finding, Plot, Precision, Standing, command},
    api::lookout::MarkBody,
    lookout::Marked,
};
use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub enum AdviceCommand {
    /// List what is advised, the gravest first
    List(FilterArgs),
    /// Show one with its numbers and what can be done
    Show {
        id: String,
    },
    Take(take::TakeArgs),
    Mark(MarkArgs),
    /// How often people found each rule's advice useful
    Precision,
}

/// Say whether a piece of advice was useful: it makes the rules better, and others see it.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  edgefleet advice mark adv-0123456789ab --useful --note 'the lens was dirty'"
)]
pub struct MarkArgs {
    id: String,
    #[arg(long, conflicts_with = "useless", required_unless_present = "useless")]
    useful: bool,
    #[arg(long)]
    useless: bool,
    /// Why, for everybody who reads it
    #[arg(long, default_value = "")]
    note: String,
}

impl AdviceCommand {
    /// # Errors
    /// [`Failure`].
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::List(filter) => {
                let all: Vec<Marked> = client.get(&format!("/api/v1/advice{}", filter.query())).await?;
                context.print(&all, |all| list(all))
            }
            Self::Show { id } => {
                let one: Marked = client.get(&format!("/api/v1/advice/{id}")).await?;
                context.print(&one, show)
            }
            Self::Take(args) => args.run(context).await,
            Self::Mark(MarkArgs { id, useful, note, .. }) => {
                let body = MarkBody { useful, note };
                let one: Marked = client.put(&format!("/api/v1/advice/{id}/mark"), &body).await?;
                let word = if useful { "useful" } else { "not useful" };
                context.print(&one, |one| format!("{} is marked {word}", one.record.id))
            }
            Self::Precision => {
                let all: Vec<Precision> = client.get("/api/v1/advice-precision").await?;
                context.print(&all, |all| precision(all))
            }
        }
    }
}

fn standing(standing: &Standing) -> String {
    match standing {
        Standing::Open => "open".to_owned(),
        Standing::Explained { by } => format!("explained by {by}"),
        Standing::Resolved { at } => format!("over {at}"),
    }
}

fn list(all: &[Marked]) -> String {
    if all.is_empty() {
        return "no advice: nothing is known that should be done".to_owned();
    }
    let each = all.iter().map(|one| {
        let tracked = &one.record.tracked;
        let Finding { rule, scope, severity, confidence, since, text, .. } = &tracked.finding;
        format!(
            "{}  {rule}  {severity:?}  {scope}  ({})\n  {}\n  since {since}, {confidence:?} confidence\n  {}",
            one.record.id,
            standing(&tracked.standing),
            text.what,
            text.to_do
        )
    });
    each.collect::<Vec<_>>().join("\n\n")
}

fn show(one: &Marked) -> String {
    let tracked = &one.record.tracked;
    let finding = &tracked.finding;
    let numbers = finding.numbers.iter().map(|(name, value)| vec![name.clone(), format!("{value:.4}")]);
    let mut text = format!(
        "{}\n\nWhat    {}\nWhy     {}\nTo do   {}\n\n{}",
        list(std::slice::from_ref(one)).lines().next().unwrap_or_default(),
        finding.text.what,
        finding.text.why,
        finding.text.to_do,
        table::of(&["NUMBER", "VALUE"], numbers)
    );
    for plot in &finding.plots {
        if let Plot::Table { title, columns, rows } = plot {
            let columns: Vec<_> = columns.iter().map(String::as_str).collect();
            text += &format!("\n\n{title}\n{}", table::of(&columns, rows.iter().cloned()));
        }
    }
    text += &format!("\n\nIn one line:\n  {}", command(&one.record.id, &finding.action));
    if let Some(taken) = &one.taken {
        text += &format!("\n\nTaken by {} at {}", taken.by, taken.at);
    }
    if let Some(mark) = &one.mark {
        let word = if mark.useful { "useful" } else { "not useful" };
        text += &format!("\n\nMarked {word} by {} at {} {}", mark.by, mark.at, mark.note);
    }
    text
}

fn precision(all: &[Precision]) -> String {
    let rows = all.iter().map(|one| {
        let marked = one.marks.useful + one.marks.not_useful;
        let share = |x: f64| format!("{:.0} %", 100.0 * x);
        let found = one.precision.map_or_else(
            || "-".to_owned(),
            |x| format!("{} ({} to {})", share(x), share(one.low), share(one.high)),
        );
        vec![one.rule.to_string(), marked.to_string(), found]
    });
    table::of(&["RULE", "MARKED", "USEFUL (95 %)"], rows)
}
