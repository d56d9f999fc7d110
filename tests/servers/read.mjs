// Prints what mailparser and postal-mime read from files: node read.mjs FOLDER-OF-NODE_MODULES FILE…
import crypto from 'node:crypto';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [folder, ...files] = process.argv.slice(2);
const required = createRequire(`${folder}/`);
const { simpleParser } = required('mailparser');
const { default: PostalMime } = await import(pathToFileURL(required.resolve('postal-mime')).href)
  .then((module) => (module.default?.parse ? module : { default: module.default.default }));

const hash = (content) => crypto.createHash('sha256').update(Buffer.from(content)).digest('hex');
const bare = (cid) => cid?.replace(/^<|>$/g, '') ?? null;
const read = { mailparser: [], 'postal-mime': [] };
for (const file of files) {
  const raw = fs.readFileSync(file);
  const one = await simpleParser(raw, { skipHtmlToText: true, skipTextToHtml: true, skipImageLinks: true });
  read.mailparser.push({
    subject: one.subject ?? '', to: (one.to?.value ?? []).map((mailbox) => `${mailbox.name}|${mailbox.address}`),
    text: one.text ?? '', html: one.html || '',
    files: one.attachments.map((each) => [each.filename ?? null, each.contentType, bare(each.cid), hash(each.content)]),
  });
  const two = await PostalMime.parse(raw);
  read['postal-mime'].push({
    subject: two.subject ?? '', to: (two.to ?? []).map((mailbox) => `${mailbox.name ?? ''}|${mailbox.address}`),
    text: two.text ?? '', html: two.html ?? '',
    files: two.attachments.map((each) => [each.filename ?? null, each.mimeType, bare(each.contentId), hash(each.content)]),
  });
}
console.log(JSON.stringify(read));
