package io.niwaki

import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import java.io.File

class ChatTest {
    /** The demo model with a chat template. */
    private val chatModel = File(System.getProperty("niwaki.chatModel"))
    private val short = GenerateOptions { maxNewTokens = 8; sampling = Sampling.Greedy }

    private suspend fun withChat(vararg messages: Message, use: suspend (Chat) -> Unit) =
        Engine.open(chatModel, oneThread).use { engine ->
            assertTrue(engine.canChat)
            engine.chat(messages.toList()).use { use(it) }
        }

    @Test
    fun `replies join the conversation and earlier turns are not computed again`() = runBlocking<Unit> {
        withChat(Message.system("Tell tales.")) { chat ->
            val first = chat.reply("Who was the king?", short).toList()
            val second = chat.reply("And the queen?", short).toList()
            val messages = chat.messages()
            assertEquals(
                listOf(Role.System, Role.User, Role.Assistant, Role.User, Role.Assistant),
                messages.map { it.role },
            )
            assertEquals("Tell tales.", messages.first().content)
            assertEquals(first.joinToString("") { it.text }, messages[2].content)
            assertEquals(0, first.last().finish?.reusedTokens)
            val finish = checkNotNull(second.last().finish)
            assertTrue(finish.reusedTokens > 0) { "$finish" }
            assertTrue(finish.promptTokens > checkNotNull(first.last().finish).promptTokens) { "$finish" }
        }
    }

    @Test
    fun `a conversation can be restored`() = runBlocking<Unit> {
        var messages = emptyList<Message>()
        var next = ""
        withChat { chat ->
            chat.reply("Who was the king?", short).toList()
            messages = chat.messages()
            next = chat.reply("And the queen?", short).text()
        }
        withChat(*messages.toTypedArray()) { chat ->
            assertEquals(messages, chat.messages())
            assertEquals(next, chat.reply("And the queen?", short).text())
            chat.setMessages(messages)
            assertEquals(next, chat.reply("And the queen?", short).text())
        }
    }

    @Test
    fun `a reply that is cancelled leaves the chat usable`() = runBlocking<Unit> {
        withChat { chat ->
            chat.reply("Who was the king?").first { it.text.isNotEmpty() }
            assertEquals(listOf(Role.User, Role.Assistant), chat.messages().map { it.role })
            chat.reply("And the queen?", short).toList()
        }
    }

    @Test
    fun `a model without a chat template says so`() = runBlocking<Unit> {
        withEngine { engine ->
            assertFalse(engine.canChat)
            assertThrows<NiwakiException.NoChat> { runBlocking { engine.chat() } }
        }
    }

    @Test
    fun `a message is not printed with its text`() {
        assertFalse("secret" in Message.user("my secret").toString())
    }
}
