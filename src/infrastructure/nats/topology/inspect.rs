//! Looks at what there is, and makes nothing.

use async_nats::jetstream::{Context, ErrorCode, context::GetStreamErrorKind};

use super::{
    Difference, Topology, TopologyError,
    differences::{STREAM, differences},
};

/// What there is of the topology.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Streams that are there.
    pub present: Vec<String>,
    /// Streams that are missing; a worker makes them.
    pub missing: Vec<String>,
    /// Where those that are there differ.
    pub differences: Vec<Difference>,
}

impl Topology {
    /// The subjects that the source stream really has, where it is there.
    pub async fn source_subjects(&self, context: &Context) -> Option<Vec<String>> {
        let stream = context.get_stream(&self.erp.name).await.ok()?;
        Some(stream.cached_info().config.subjects.clone())
    }

    /// Compares the streams with those that are there.
    ///
    /// # Errors
    /// [`TopologyError::Server`] when the server does not answer or has no JetStream.
    pub async fn inspect(&self, context: &Context) -> Result<Inspection, TopologyError> {
        let mut found = Inspection::default();
        for config in self.streams() {
            let name = config.name.clone();
            match context.get_stream(&name).await {
                Ok(stream) => {
                    let (of, actual) = (format!("stream {name}"), &stream.cached_info().config);
                    found
                        .differences
                        .extend(differences(&of, &STREAM, config, actual));
                    found.present.push(name);
                }
                Err(error) => match error.kind() {
                    GetStreamErrorKind::JetStream(e)
                        if e.error_code() == ErrorCode::STREAM_NOT_FOUND =>
                    {
                        found.missing.push(name);
                    }
                    _ => return Err(TopologyError::server("the stream", &name, error)),
                },
            }
        }
        Ok(found)
    }
}
