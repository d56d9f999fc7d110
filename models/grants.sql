-- Run at each `duepost migrate`, after the migrations: roles may come later than the schema.
-- A role that may not create roles goes on without them; `duepost doctor` says so.

DO $$
DECLARE
    role_name text;
    open_one  regclass;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['duepost_client', 'duepost_worker', 'duepost_operator', 'duepost_viewer'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
            EXCEPTION
                WHEN insufficient_privilege OR duplicate_object OR unique_violation THEN NULL;
            END;
        END IF;
    END LOOP;

    REVOKE ALL ON SCHEMA duepost FROM PUBLIC;
    REVOKE ALL ON ALL ROUTINES IN SCHEMA duepost FROM PUBLIC;
    -- What the owner's default privileges have opened to everybody. A team's own view of its users is that one's to open.
    FOR open_one IN
        SELECT DISTINCT c.oid
        FROM pg_class AS c
        CROSS JOIN LATERAL aclexplode(c.relacl) AS granted
        WHERE c.relnamespace = 'duepost'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S') AND granted.grantee = 0
          AND pg_has_role(current_user, c.relowner, 'USAGE')
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM PUBLIC', open_one);
    END LOOP;

    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'duepost_client') THEN
        GRANT USAGE ON SCHEMA duepost TO duepost_client;
        GRANT EXECUTE ON FUNCTION
            duepost.attachment, duepost.attachment_at, duepost.schedule_email, duepost.schedule_emails, duepost.clear_scheduled_emails,
            duepost.clear_scheduled_emails_to, duepost.clear_scheduled_email, duepost.reschedule_email,
            duepost.add_to_batch, duepost.remove_from_batch,
            duepost.schedule_message, duepost.schedule_messages, duepost.edit_message, duepost.clear_scheduled_messages,
            duepost.clear_scheduled_message, duepost.reschedule_message, duepost.clear_scheduled, duepost.status
        TO duepost_client;
    END IF;

    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'duepost_operator') THEN
        GRANT USAGE ON SCHEMA duepost TO duepost_operator;
        GRANT EXECUTE ON FUNCTION
            duepost.set_endpoint, duepost.disable_endpoint, duepost.remove_endpoint, duepost.endpoints, duepost.status,
            duepost.begin_action, duepost.act_on_items, duepost.end_action, duepost.set_pause, duepost.unpark,
            duepost.request_probe, duepost.forget_some, duepost.suppress, duepost.unsuppress, duepost.import_suppressions,
            duepost.set_rate, duepost.remove_rate, duepost.set_priority, duepost.follow_priority
        TO duepost_operator;
    END IF;

    -- Reads all that people look at, and changes nothing. Endpoints hold secrets: what of them may be seen, a function gives.
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'duepost_viewer') THEN
        GRANT USAGE ON SCHEMA duepost, dramatiq TO duepost_viewer;
        GRANT SELECT ON
            duepost.item, duepost.email, duepost.message, duepost.scheduled_email_user, duepost.email_recipient,
            duepost.scheduled_email,
            duepost.scheduled_message, duepost.in_hand, duepost.batch, duepost.batch_item,
            duepost.scheduled_email_id_seq, duepost.delivery, duepost.attempt, duepost.suppression, duepost.undeliverable_email,
            duepost.undeliverable_recipient, duepost.worker, duepost.turn, duepost.control, duepost.route,
            duepost.route_worker, duepost.kind, duepost.email_kind, duepost.migration, duepost.present, duepost.retention,
            duepost.operator_action, duepost.bounce, duepost.webhook, duepost.zone, duepost.rate, duepost.destination, duepost.destination_worker,
            duepost.attachment_content, duepost.email_attachment, duepost.email_file,
            dramatiq.queue
        TO duepost_viewer;
        GRANT SELECT (name, disabled_at, disabled_because) ON duepost.endpoint TO duepost_viewer;
        -- That it is kept; what it said is for others.
        GRANT SELECT (email_id, user_id, address, sent_at, kept_until) ON duepost.kept_content TO duepost_viewer;
        GRANT EXECUTE ON FUNCTION
            duepost.endpoints, duepost.status, duepost.pending_routes, duepost.pending_lines, duepost.oldest_due,
            duepost.is_route_blocked, duepost.ways,
            duepost.after_quiet_hours, duepost.quiet_users, duepost.quiet_until, duepost.moment_at, duepost.zone_of, duepost.is_zone,
            duepost.users_to_go, duepost.limits_of, duepost.limits_in_json, duepost.places_in_use,
            duepost.mailbox_key, duepost.mailbox_key_beyond_ascii, duepost.trimmed, duepost.domain_in_ascii,
            duepost.mapped_domain, duepost.lower_case, duepost.punycode
        TO duepost_viewer;
        BEGIN
            GRANT SELECT ON duepost.recipient TO duepost_viewer;
        EXCEPTION
            WHEN insufficient_privilege OR undefined_table THEN NULL;
        END;
        -- The console has a worker's login, and becomes a viewer for those who are.
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'duepost_worker') THEN
            BEGIN
                GRANT duepost_viewer TO duepost_worker;
            EXCEPTION
                WHEN insufficient_privilege THEN NULL;
            END;
        END IF;
    END IF;

    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'duepost_worker') THEN
        GRANT USAGE ON SCHEMA duepost, dramatiq TO duepost_worker;
        GRANT SELECT, INSERT, UPDATE, DELETE ON dramatiq.queue, dramatiq.result TO duepost_worker;
        GRANT SELECT, UPDATE, DELETE ON
            duepost.item, duepost.email, duepost.message, duepost.scheduled_email_user, duepost.email_recipient
        TO duepost_worker;
        GRANT SELECT ON duepost.scheduled_email, duepost.scheduled_message, duepost.endpoint TO duepost_worker;
        GRANT UPDATE (failing_since, disabled_at, disabled_because) ON duepost.endpoint TO duepost_worker;
        GRANT SELECT, INSERT, UPDATE, DELETE ON duepost.in_hand TO duepost_worker;
        GRANT SELECT, DELETE ON duepost.batch TO duepost_worker;
        GRANT SELECT ON duepost.batch_item, duepost.zone TO duepost_worker;
        GRANT SELECT, INSERT ON duepost.delivery, duepost.attempt TO duepost_worker;
        REVOKE DELETE ON duepost.suppression FROM duepost_worker;
        -- Workers of 0.2.0 add what a relay calls dead to the table itself.
        GRANT SELECT, INSERT ON duepost.suppression TO duepost_worker;
        GRANT USAGE ON SEQUENCE duepost.suppression_id_seq TO duepost_worker;
        GRANT SELECT ON duepost.undeliverable_email, duepost.undeliverable_recipient, duepost.secret, duepost.bounce, duepost.webhook,
            duepost.kept_content
        TO duepost_worker;
        GRANT SELECT ON duepost.attachment_content, duepost.email_attachment TO duepost_worker;
        GRANT SELECT, INSERT, UPDATE, DELETE ON duepost.worker TO duepost_worker;
        GRANT SELECT, UPDATE ON duepost.turn, duepost.person_turn TO duepost_worker;
        GRANT SELECT, UPDATE ON duepost.control TO duepost_worker;
        GRANT SELECT, INSERT, UPDATE ON duepost.route, duepost.route_worker TO duepost_worker;
        GRANT SELECT ON duepost.rate TO duepost_worker;
        GRANT SELECT, INSERT, UPDATE ON duepost.destination, duepost.destination_worker TO duepost_worker;
        GRANT SELECT ON duepost.operator_action, duepost.scheduled_email_id_seq TO duepost_worker;
        GRANT SELECT ON duepost.kind, duepost.email_kind, duepost.migration, duepost.present, duepost.retention TO duepost_worker;
        GRANT USAGE ON SEQUENCE duepost.claim_number, dramatiq.claim_number TO duepost_worker;
        GRANT EXECUTE ON FUNCTION
            duepost.attachment, duepost.attachment_at, duepost.schedule_email, duepost.schedule_emails, duepost.clear_scheduled_emails,
            duepost.clear_scheduled_emails_to, duepost.clear_scheduled_email, duepost.reschedule_email,
            duepost.add_to_batch, duepost.remove_from_batch,
            duepost.schedule_message, duepost.schedule_messages, duepost.edit_message, duepost.clear_scheduled_messages,
            duepost.clear_scheduled_message, duepost.reschedule_message, duepost.clear_scheduled, duepost.status,
            duepost.endpoints, duepost.finish,
            duepost.move_to_ledger, duepost.is_in_hand, duepost.has_claim, duepost.enqueue_items,
            duepost.enqueue_items_v2,
            duepost.due_now, duepost.due_now_v2, duepost.claim_emails_v2, duepost.claim_due_emails_v1, duepost.claim_emails_v3,
            duepost.claim_due_emails_v2, duepost.email_extras, duepost.lock_due, duepost.lock_line,
            duepost.lock_lines, duepost.close_batch,
            duepost.batch_date,
            duepost.users_to_go, duepost.recipient_rows, duepost.recipient_row_v2, duepost.recipient_rows_v2, duepost.conclude_emails,
            duepost.is_too_late, duepost.usual_on_unknown,
            duepost.claim_messages_v1, duepost.claim_messages_v2, duepost.check_conditions_v1, duepost.lock_kept,
            duepost.ask_guard, duepost.drop_beyond_cap, duepost.had_of_kind, duepost.context_of, duepost.moment_for, duepost.moment_at, duepost.zone_of, duepost.is_zone,
            duepost.quiet_users, duepost.quiet_until, duepost.after_quiet_hours, duepost.spread, duepost.move_on,
            duepost.move_item, duepost.message_content, duepost.call_message_function, duepost.tell_outcomes,
            duepost.keep_undeliverable, duepost.lock_undeliverable, duepost.reopen_email, duepost.refused_alike,
            duepost.forget_undeliverable, duepost.drop_attachments, duepost.pin_files, duepost.keep_content, duepost.forget_content,
            duepost.take_connection, duepost.refuse_connection, duepost.report_connections, duepost.other_connections,
            duepost.limits_of, duepost.limits_in_json, duepost.lock_destinations, duepost.places_in_use, duepost.take_places,
            duepost.give_turns, duepost.learn_rate, duepost.set_rate, duepost.remove_rate,
            duepost.slow_route, duepost.pause_route, duepost.register_route, duepost.is_route_blocked,
            duepost.is_way_of, duepost.ways, duepost.claimed_directly_until, duepost.pending_routes,
            duepost.pending_lines, duepost.oldest_due,
            duepost.is_kind_paused, duepost.is_stopped, duepost.park_paused,
            duepost.begin_action, duepost.act_on_items, duepost.end_action, duepost.set_pause, duepost.unpark, duepost.set_priority, duepost.follow_priority,
            duepost.request_probe,
            duepost.suppress, duepost.unsuppress, duepost.import_suppressions, duepost.suppress_dead, duepost.suppressed_kinds,
            duepost.change_subscription, duepost.note_bounce, duepost.use_webhook_token, duepost.tell_webhook,
            duepost.is_unsubscribable,
            duepost.maintain_partitions
        TO duepost_worker;
        -- An index of theirs is asked for each row that a worker changes.
        GRANT EXECUTE ON FUNCTION
            duepost.mailbox_key, duepost.mailbox_key_beyond_ascii, duepost.trimmed, duepost.domain_in_ascii,
            duepost.mapped_domain, duepost.lower_case, duepost.punycode
        TO duepost_worker;
        -- A team's own view of its users may belong to somebody else, who then grants it.
        BEGIN
            GRANT SELECT ON duepost.recipient TO duepost_worker;
        EXCEPTION
            WHEN insufficient_privilege OR undefined_table THEN NULL;
        END;
    END IF;
END
$$;
