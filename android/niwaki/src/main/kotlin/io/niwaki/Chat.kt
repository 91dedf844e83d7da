package io.niwaki

import kotlinx.coroutines.flow.Flow
import java.io.Closeable
import io.niwaki.ffi.Chat as NativeChat
import io.niwaki.ffi.Message as NativeMessage
import io.niwaki.ffi.Role as NativeRole

/**
 * A conversation. Made by [Engine.chat].
 *
 * Messages go in through the model's chat template, replies stream out. What was computed for earlier turns is
 * kept, so that a reply computes only what is new.
 */
public class Chat internal constructor(private val native: NativeChat) : Closeable {
    private val lifetime = Lifetime("the chat")

    /**
     * Adds a [message] of the user and generates the reply. Nothing is computed before the flow is collected, and
     * nothing is computed any more once its collection has ended or was cancelled.
     *
     * ```
     * val reply = scope.launch {
     *     chat.reply("Why is the sky blue?").collect { print(it.text) }
     * }
     * stopButton.setOnClickListener { reply.cancel() }
     * ```
     *
     * When the reply ends, it joins the conversation. One that was cancelled joins it with the text that it had;
     * without any, the message is taken back too.
     *
     * One reply of a chat is collected at a time: another fails with [NiwakiException.Busy].
     *
     * @throws NiwakiException from the flow.
     */
    public fun reply(message: String, options: GenerateOptions = GenerateOptions()): Flow<Token> =
        lifetime.tokens { native.reply(message.wellFormed(), options.toNative()) }

    /**
     * The conversation so far.
     *
     * @throws NiwakiException.Busy while a reply is collected.
     */
    public suspend fun messages(): List<Message> = offMain { lifetime.use { native.messages() }.map(::Message) }

    /**
     * Replaces the conversation: to restore one, or to begin anew. What it has in common with the one before stays
     * computed.
     *
     * @throws NiwakiException.Busy while a reply is collected.
     */
    public suspend fun setMessages(messages: List<Message>): Unit = offMain {
        lifetime.use { native.setMessages(messages.map(Message::toNative)) }
    }

    /** Frees the context. What is still generating ends within one layer's work, with [NiwakiException.Closed]. */
    override fun close() {
        if (lifetime.end()) native.close()
    }
}

/** Who a [Message] is from. */
public enum class Role {
    /** The app: how the model shall behave. */
    System,

    /** The user. */
    User,

    /** The model. */
    Assistant,
    ;

    internal fun toNative(): NativeRole = when (this) {
        System -> NativeRole.SYSTEM
        User -> NativeRole.USER
        Assistant -> NativeRole.ASSISTANT
    }
}

internal fun NativeRole.toRole(): Role = when (this) {
    NativeRole.SYSTEM -> Role.System
    NativeRole.USER -> Role.User
    NativeRole.ASSISTANT -> Role.Assistant
}

/**
 * One message of a [Chat]. It is not printed with its text: what users write does not belong into logs. Half a surrogate
 * pair in it, such as an emoji that was cut in two, comes to the model as U+FFFD.
 */
public class Message(public val role: Role, public val content: String) {
    internal constructor(native: NativeMessage) : this(native.role.toRole(), native.content)

    internal fun toNative() = NativeMessage(role.toNative(), content.wellFormed())

    override fun equals(other: Any?): Boolean = other is Message && role == other.role && content == other.content

    override fun hashCode(): Int = 31 * role.hashCode() + content.hashCode()

    override fun toString(): String = "Message(role=$role, ${content.length} characters)"

    public companion object {
        /** A message of the app that says how the model shall behave. */
        public fun system(content: String): Message = Message(Role.System, content)

        /** A message of the user. */
        public fun user(content: String): Message = Message(Role.User, content)

        /** A message of the model. */
        public fun assistant(content: String): Message = Message(Role.Assistant, content)
    }
}
