// Prints what mailparser and postal-mime read from files: node read.mjs FOLDER-OF-NODE_MODULES FILE…
import fs from 'node:fs';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [folder, ...files] = process.argv.slice(2);
const required = createRequire(`${folder}/`);
const { simpleParser } = required('mailparser');
const { default: PostalMime } = await import(pathToFileURL(required.resolve('postal-mime')).href)
  .then((module) => (module.default?.parse ? module : { default: module.default.default }));

const read = { mailparser: [], 'postal-mime': [] };
for (const file of files) {
  const raw = fs.readFileSync(file);
  const one = await simpleParser(raw, { skipHtmlToText: true, skipTextToHtml: true });
  read.mailparser.push({
    subject: one.subject ?? '', to: (one.to?.value ?? []).map((mailbox) => `${mailbox.name}|${mailbox.address}`),
    text: one.text ?? '', html: one.html || '',
  });
  const two = await PostalMime.parse(raw);
  read['postal-mime'].push({
    subject: two.subject ?? '', to: (two.to ?? []).map((mailbox) => `${mailbox.name ?? ''}|${mailbox.address}`),
    text: two.text ?? '', html: two.html ?? '',
  });
}
console.log(JSON.stringify(read));
