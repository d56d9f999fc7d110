-- Writing to the view that applications and operators see: duepost.scheduled_email.

-- What is written to the view goes to the tables. A state is what the tables say: `sending` is a row in hand, `unknown` is
-- held; a message is what makes an item queued, so that it is not made queued here.
CREATE OR REPLACE FUNCTION duepost.write_scheduled_email() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM dramatiq.queue AS m WHERE m.key = OLD.id;
        DELETE FROM duepost.in_hand AS h WHERE h.item_id = OLD.id;
        DELETE FROM duepost.scheduled_email_user AS u WHERE u.email_id = OLD.id;
        DELETE FROM duepost.batch AS b WHERE b.email_id = OLD.id;
        DELETE FROM duepost.email_recipient AS r WHERE r.email_id = OLD.id;
        DELETE FROM duepost.email AS e WHERE e.item_id = OLD.id;
        DELETE FROM duepost.item AS i WHERE i.id = OLD.id;
        RETURN CASE WHEN FOUND THEN OLD END;
    END IF;
    NEW.state := coalesce(NEW.state, 'scheduled');
    IF NEW.state NOT IN ('scheduled', 'queued', 'sending', 'unknown') THEN
        RAISE EXCEPTION USING ERRCODE = '23514', MESSAGE = 'state: must be scheduled, queued, sending or unknown';
    END IF;
    IF TG_OP = 'INSERT' THEN
        NEW.id := coalesce(NEW.id, nextval('duepost.scheduled_email_id_seq'));
        INSERT INTO duepost.item (
            id, kind, route, scheduled_at, due_at, expires_at, created_at, attempts, unknowns, is_held, probe,
            mailbox_full_since, key, last_error
        ) VALUES (
            NEW.id, NEW.kind, coalesce(NEW.route, 'default'), NEW.scheduled_at, NEW.due_at, NEW.expires_at,
            coalesce(NEW.created_at, now()), coalesce(NEW.attempts, 0), coalesce(NEW.unknowns, 0), NEW.state = 'unknown', coalesce(NEW.probe, false),
            NEW.mailbox_full_since, NEW.key, NEW.last_error
        );
        INSERT INTO duepost.email (
            item_id, message_id_header, date_header, address, sender, reply_to, headers, template, context, subject,
            body_text, body_html
        ) VALUES (
            NEW.id, NEW.message_id_header, NEW.date_header, NEW.address, NEW.sender, NEW.reply_to, NEW.headers,
            NEW.template, NEW.context, NEW.subject, NEW.body_text, NEW.body_html
        );
    ELSE
        UPDATE duepost.item AS i
        SET kind = NEW.kind, route = coalesce(NEW.route, 'default'), scheduled_at = NEW.scheduled_at, due_at = NEW.due_at,
            expires_at = NEW.expires_at, created_at = NEW.created_at, attempts = NEW.attempts, unknowns = NEW.unknowns,
            is_held = NEW.state = 'unknown', probe = NEW.probe AND coalesce(NEW.route, 'default') = OLD.route,
            mailbox_full_since = NEW.mailbox_full_since, key = NEW.key, last_error = NEW.last_error
        WHERE i.id = OLD.id;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
        UPDATE duepost.email AS e
        SET message_id_header = NEW.message_id_header, date_header = NEW.date_header, address = NEW.address,
            sender = NEW.sender, reply_to = NEW.reply_to, headers = NEW.headers, template = NEW.template,
            context = NEW.context, subject = NEW.subject, body_text = NEW.body_text, body_html = NEW.body_html
        WHERE e.item_id = OLD.id
          AND (e.message_id_header, e.date_header, e.address, e.sender, e.reply_to, e.headers, e.template, e.context,
               e.subject, e.body_text, e.body_html)
              IS DISTINCT FROM
              (NEW.message_id_header, NEW.date_header, NEW.address, NEW.sender, NEW.reply_to, NEW.headers, NEW.template,
               NEW.context, NEW.subject, NEW.body_text, NEW.body_html);
        -- One that is moved to another route is no longer queued for its old one.
        IF (NEW.state IN ('scheduled', 'unknown') AND OLD.state IN ('queued', 'sending'))
            OR (OLD.state = 'queued' AND coalesce(NEW.route, 'default') <> OLD.route)
        THEN
            DELETE FROM dramatiq.queue AS m WHERE m.key = OLD.id;
        END IF;
        IF OLD.state = 'sending' AND (NEW.claim, NEW.worker_id, NEW.claimed_at, NEW.state)
            IS DISTINCT FROM (OLD.claim, OLD.worker_id, OLD.claimed_at, OLD.state)
        THEN
            DELETE FROM duepost.in_hand AS h WHERE h.item_id = OLD.id;
        ELSIF OLD.state = 'sending' THEN
            RETURN NEW;
        END IF;
    END IF;
    IF NEW.state = 'sending' THEN
        INSERT INTO duepost.in_hand (item_id, claim, worker_id, claimed_at, route)
        VALUES (NEW.id, NEW.claim, NEW.worker_id, NEW.claimed_at, coalesce(NEW.route, 'default'));
    END IF;
    RETURN NEW;
END
$$;
