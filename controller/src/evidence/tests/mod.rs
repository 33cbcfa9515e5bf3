mod fleet;
mod limits;
mod rates;
mod rules;
