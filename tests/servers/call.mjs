// Calls functions by npm's pg: node call.mjs FOLDER-OF-NODE_MODULES; stdin has [[statement, values], …], stdout what came of it.
// Each call is a transaction of its own; what is raised inside of one is rolled back with what was done before it there.
import { createRequire } from 'node:module';
import fs from 'node:fs';

const { Client } = createRequire(`${process.argv[2]}/`)('pg');
const client = new Client({ types: { getTypeParser: () => (value) => value } });
await client.connect();

const outcomes = [];
for (const [text, values] of JSON.parse(fs.readFileSync(0, 'utf8'))) {
  await client.query('BEGIN');
  try {
    const { rows } = await client.query({ text, values, rowMode: 'array' });
    await client.query('COMMIT');
    outcomes.push({ rows });
  } catch (error) {
    await client.query('ROLLBACK');
    outcomes.push({ error: [error.code, error.message] });
  }
}

// What is rolled back was never scheduled.
await client.query('BEGIN');
await client.query("SELECT duepost.schedule_email('k', 'ann@example.com', subject => 's', body_text => 'b', key => 'undone')");
await client.query('ROLLBACK');
const { rows: undone } = await client.query("SELECT FROM duepost.status(key => 'undone')");
await client.end();
console.log(JSON.stringify({ outcomes, undone: undone.length }));
