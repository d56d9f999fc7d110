-- Whether those who may only look can change something.

-- name: may_write
-- Whether this role may change what is pending, finished or set, or act for an operator.
SELECT has_table_privilege('duepost.item', 'INSERT, UPDATE, DELETE')
    OR has_table_privilege('duepost.delivery', 'INSERT, UPDATE, DELETE')
    OR has_table_privilege('duepost.suppression', 'INSERT, UPDATE, DELETE')
    OR has_function_privilege('duepost.begin_action(text, text, text, text, jsonb, text)', 'EXECUTE')
    OR has_function_privilege('duepost.clear_scheduled_email(bigint)', 'EXECUTE')
