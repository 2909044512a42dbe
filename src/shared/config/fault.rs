//! What is wrong with the configuration: all of it at once.

use std::fmt;

/// One fault. Its text names what is wrong and what is allowed, never the value of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFault {
    /// The variable.
    pub variable: &'static str,
    /// What is wrong with it and what is allowed.
    pub problem: String,
}

/// Every fault of the configuration, in the order in which the variables are read.
#[derive(Debug, Clone, Default, PartialEq, Eq, thiserror::Error)]
pub struct ConfigFaults(pub Vec<ConfigFault>);

impl ConfigFaults {
    /// Whether this variable has a fault.
    pub fn concern(&self, variable: &str) -> bool {
        self.0.iter().any(|fault| fault.variable == variable)
    }

    /// Adds a fault.
    pub fn add(&mut self, variable: &'static str, problem: impl Into<String>) {
        self.0.push(ConfigFault {
            variable,
            problem: problem.into(),
        });
    }
}

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => write!(f, "the configuration has a fault:")?,
            count => write!(f, "the configuration has {count} faults:")?,
        }
        for fault in &self.0 {
            write!(f, "\n  {}: {}", fault.variable, fault.problem)?;
        }
        Ok(())
    }
}
