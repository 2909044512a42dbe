//! PostgreSQL: a database of its own for each test, or a whole server for those that stop it.

use std::{
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, postgres::PgConnectOptions};
use tempfile::TempDir;

use super::{PATIENCE, eventually, process::Process, variable};

/// An empty database in the cluster at `$TEST_POSTGRES_URL`, else in one that lives as long as
/// any of its databases; dropped with this.
#[derive(Debug)]
pub(crate) struct Postgres {
    cluster: Cluster,
    name: String,
}

#[derive(Debug)]
enum Cluster {
    Given(String),
    Own(Arc<PostgresServer>),
}

impl Cluster {
    /// Of the database that every cluster has.
    fn url(&self) -> String {
        match self {
            Self::Given(url) => url.clone(),
            Self::Own(server) => server.url(),
        }
    }
}

impl Postgres {
    pub(crate) async fn database() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("it_{}_{number}", std::process::id());
        let cluster = match variable("TEST_POSTGRES_URL") {
            Some(url) => Cluster::Given(url),
            None => Cluster::Own(shared_server().await),
        };
        // An earlier process of the same id may have been killed before it dropped its own.
        execute(
            &cluster.url(),
            &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"),
        )
        .await;
        execute(&cluster.url(), &format!("CREATE DATABASE {name}")).await;
        Self { cluster, name }
    }

    pub(crate) fn url(&self) -> String {
        let url = self.cluster.url();
        let (server, _) = url.rsplit_once('/').expect("the URL names a database");
        format!("{server}/{}", self.name)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let url = self.cluster.url();
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        // A thread with a runtime of its own: the test's may be going down.
        let dropping = thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime")
                .block_on(execute(&url, &statement));
        });
        // A test that fails keeps its own failure.
        drop(dropping.join());
    }
}

/// One for all tests of this process; it ends with the last database in it.
async fn shared_server() -> Arc<PostgresServer> {
    static SHARED: tokio::sync::Mutex<Weak<PostgresServer>> =
        tokio::sync::Mutex::const_new(Weak::new());
    let mut shared = SHARED.lock().await;
    if let Some(server) = shared.upgrade() {
        return server;
    }
    let server = Arc::new(PostgresServer::start().await);
    *shared = Arc::downgrade(&server);
    server
}

/// A cluster that a test may stop; its port and its data last as long as this does.
#[derive(Debug)]
pub(crate) struct PostgresServer {
    folder: TempDir,
    port: u16,
    process: Mutex<Option<Process>>,
}

impl PostgresServer {
    pub(crate) async fn start() -> Self {
        // Not TMPDIR: it may lie where the server's own user cannot go.
        let folder = tempfile::tempdir_in("/tmp").expect("a temporary folder");
        let data = folder.path().join("data");
        if let Some((user, _)) = server_user() {
            std::os::unix::fs::chown(folder.path(), Some(user), None).expect("root may do that");
        }
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))
            .expect("it is ours");
        let made = as_server_user("initdb", folder.path())
            .arg("--pgdata")
            .arg(&data)
            .args([
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
            ])
            .arg("--no-sync")
            .output()
            .expect("initdb runs");
        assert!(
            made.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&made.stderr)
        );

        // Somebody else may take the port between the asking and the starting: then another one.
        let mut server = Self {
            folder,
            port: 0,
            process: Mutex::new(None),
        };
        for attempt in 1.. {
            server.port = free_port();
            if server.run().await {
                return server;
            }
            assert!(attempt < 5, "PostgreSQL does not start");
        }
        unreachable!("the loop ends by itself")
    }

    pub(crate) fn url(&self) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Ends it as an administrator would: open connections are closed, transactions rolled back.
    pub(crate) async fn stop(&self) {
        self.end("INT").await;
    }

    /// Ends it as a crash would: what was not committed is gone, recovery follows at the start.
    pub(crate) async fn crash(&self) {
        self.end("QUIT").await;
    }

    /// Starts it again with the port and the data that it had; stops it first where it runs.
    pub(crate) async fn restart(&self) {
        self.stop().await;
        // A client's outgoing connection may sit on the port for a moment.
        eventually(PATIENCE, async || self.run().await.then_some(())).await;
    }

    async fn end(&self, signal: &str) {
        let process = self
            .process
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(mut process) = process {
            process.signal(signal);
            process.wait(PATIENCE).await;
        }
    }

    /// Answers whether it came up.
    async fn run(&self) -> bool {
        let data = self.folder.path().join("data");
        let mut command = as_server_user("postgres", self.folder.path());
        command
            .arg("-D")
            .arg(&data)
            .arg("-p")
            .arg(self.port.to_string());
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "max_connections=100",
            "fsync=off",
            "full_page_writes=off",
        ] {
            command.args(["-c", setting]);
        }
        let mut process = Process::spawn(&mut command);
        let pid_file = data.join("postmaster.pid");
        let came_up = eventually(PATIENCE, async || {
            if !process.is_running() {
                return Some(false);
            }
            // The last line tells when connections are taken.
            let text = std::fs::read_to_string(&pid_file).unwrap_or_default();
            let ours = text.lines().next() == Some(process.id().to_string().as_str());
            let ready = text
                .lines()
                .last()
                .is_some_and(|line| line.starts_with("ready"));
            (ours && ready).then_some(true)
        })
        .await;
        if came_up {
            *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        }
        came_up
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        let process = self
            .process
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(process) = process {
            // Before the kill, so that its own children end and free the shared memory.
            process.signal("QUIT");
            process.join_or_kill(PATIENCE);
        }
    }
}

/// Runs one statement on a connection of its own.
pub(crate) async fn execute(url: &str, statement: &str) {
    let options: PgConnectOptions = url.parse().expect("a URL of PostgreSQL");
    let mut connection = options
        .ssl_mode(sqlx::postgres::PgSslMode::Disable)
        .connect()
        .await
        .expect("PostgreSQL takes a connection");
    sqlx::raw_sql(AssertSqlSafe(statement))
        .execute(&mut connection)
        .await
        .unwrap_or_else(|error| panic!("{statement}: {error}"));
    connection.close().await.expect("it says goodbye");
}

/// PostgreSQL refuses to run as root: then the user and group that it runs as.
fn server_user() -> Option<(u32, u32)> {
    static USER: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *USER.get_or_init(|| {
        if id(&["-u"])? != 0 {
            return None;
        }
        ["postgres", "nobody"]
            .into_iter()
            .find_map(|name| Some((id(&["-u", name])?, id(&["-g", name])?)))
    })
}

fn id(arguments: &[&str]) -> Option<u32> {
    let answer = Command::new("id").args(arguments).output().ok()?;
    String::from_utf8_lossy(&answer.stdout).trim().parse().ok()
}

fn as_server_user(program: &str, folder: &Path) -> Command {
    let mut command = Command::new(server_programs().join(program));
    command.current_dir(folder);
    if let Some((user, group)) = server_user() {
        command.uid(user).gid(group);
    }
    command
}

/// Where `initdb` and `postgres` are.
fn server_programs() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/postgres");
        let found = Command::new(script)
            .arg("ensure")
            .output()
            .expect("the script runs");
        let complaint = String::from_utf8_lossy(&found.stderr);
        assert!(found.status.success(), "no PostgreSQL: {complaint}");
        PathBuf::from(String::from_utf8_lossy(&found.stdout).trim())
    })
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("there are free ports");
    listener.local_addr().expect("it is bound").port()
}
