// A shop where one can register: Node's pg, and Duepost in the client's transaction.
// DUEPOST_DATABASE_URL=… npm start
import pg from "pg";

const url = new URL(process.env.DUEPOST_DATABASE_URL.replace("@/", "@localhost/"));
const client = new pg.Client({
  host: url.searchParams.get("host") ?? url.hostname,
  port: Number(url.searchParams.get("port") ?? (url.port || 5432)),
  user: url.username,
  password: url.password || undefined,
  database: url.pathname.slice(1),
});
await client.connect();
await client.query("CREATE TABLE IF NOT EXISTS account (id bigserial PRIMARY KEY, email text NOT NULL UNIQUE)");

async function register(email) {
  await client.query("BEGIN");
  try {
    const account = await client.query("INSERT INTO account (email) VALUES ($1) RETURNING id", [email]);
    const scheduled = await client.query(
      `SELECT duepost.schedule_email(kind => 'welcome', address => $1, subject => 'Welcome', body_text => $2,
                                     headers => $3, key => $4) AS id`,
      [email, "It is good to have you.", JSON.stringify({ "X-Shop": "yes" }), `welcome-${account.rows[0].id}`],
    );
    await client.query("COMMIT");
    return scheduled.rows[0].id; // a bigint, which pg gives as a string
  } catch (error) {
    await client.query("ROLLBACK");
    throw error;
  }
}

console.log("scheduled", await register("ann@example.com"));
try {
  await register("nobody");
} catch (error) {
  console.log("refused", error.code, error.message);
}
const receipts = await client.query("SELECT receipt FROM duepost.clear_scheduled_emails_to($1)", ["ann@example.com"]);
console.log("clear", receipts.rows[0].receipt);
const left = await client.query("SELECT count(*)::int AS accounts FROM account");
console.log("accounts", left.rows[0].accounts);
await client.end();
