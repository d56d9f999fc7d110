// Takes every email after a short random wait, and keeps it as a file. Unknown users are refused.
'use strict';

const fs = require('node:fs');

exports.hook_rcpt = function (next, connection, params) {
  if (params[0].user.startsWith('unknown')) return next(DENY, 'no such user');
  next();
};

exports.hook_queue = function (next, connection) {
  const file = `/var/mail/inbox/new/${connection.transaction.uuid}`;
  setTimeout(() => {
    const stream = fs.createWriteStream(`${file}.part`);
    stream.on('finish', () => { fs.renameSync(`${file}.part`, file); next(OK); });
    connection.transaction.message_stream.pipe(stream, { line_endings: '\n' });
  }, Math.random() * 50);
};
